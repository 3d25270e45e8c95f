"""Prompt lookup for llama.cpp, as llama-cpp-python's `LlamaPromptLookupDecoding` and llama.cpp's own lookup do it.

The last n tokens, n from `most` down to 1, are looked for earlier in the text, and what followed their newest place is
the draft. Places are kept in tables, so that a proposal costs microseconds: the peer is not to lose by its Python.
"""

from collections.abc import Sequence


class Lookup:
    """`most` longest n-gram, `count` tokens drafted."""

    def __init__(self, most: int, count: int) -> None:
        self.most = most
        self.count = count
        self.text: list[int] = []
        self._places: list[dict[tuple[int, ...], int]] = [{} for _ in range(most + 1)]

    def start(self, ids: Sequence[int]) -> None:
        """Forget everything and take a new text."""
        self.text = []
        self._places = [{} for _ in range(self.most + 1)]
        self.extend(ids)

    def extend(self, ids: Sequence[int]) -> None:
        for token in ids:
            # An n-gram is entered once its next token is known: the end of the text does not find itself.
            end = len(self.text)
            for n in range(1, min(self.most, end) + 1):
                self._places[n][tuple(self.text[end - n :])] = end
            self.text.append(token)

    def propose(self) -> list[int]:
        """What followed the newest earlier place of the longest known end.

        >>> lookup = Lookup(2, 3)
        >>> lookup.start([1, 2, 3, 4, 9, 2, 3])
        >>> lookup.propose()
        [4, 9, 2]
        """
        for n in range(min(self.most, len(self.text)), 0, -1):
            place = self._places[n].get(tuple(self.text[-n:]))
            if place is not None:
                return self.text[place : place + self.count]
        return []
