"""The vocabulary of a model as bytes: what a constraint on text needs to know about tokens."""

from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from steno.core.errors import ModelError

from .base import Tokenizer


@dataclass(frozen=True, eq=False, kw_only=True)
class Words:
    """Every id of a model as the bytes it writes.

    table   bytes by id, as wide as the model's logits; b"" for what writes nothing: special tokens and padding
    ends    ids that end a text
    encode  the ids that the tokenizer itself would write some bytes with
    """

    table: tuple[bytes, ...]
    ends: tuple[int, ...]
    encode: Callable[[bytes], Sequence[int]]

    @staticmethod
    def of(tokenizer: Tokenizer, vocab: int, ends: Collection[int]) -> "Words":
        """The words of a tokenizer beside a model of `vocab` logits whose texts end with `ends`.

        Raises ModelError where the tokenizer's words have no bytes of their own.
        """
        table = tokenizer.words()
        if table is None:
            raise ModelError(
                "Tokenizer: its words have no fixed bytes (it is neither byte-level nor has byte fallback), so what "
                "may come next in a text cannot be told from ids. Choose a model with another tokenizer, such as nib."
            )
        rows = [*table[:vocab], *[b""] * (vocab - len(table))]
        for end in ends:
            rows[end] = b""
        found = Words(table=tuple(rows), ends=tuple(sorted(ends)), encode=tokenizer.encode_bytes)
        # With byte fallback a text is encoded with a space before it.
        return found if tokenizer.byte_exact else replace(found, encode=found.longest)

    def longest(self, data: bytes) -> list[int]:
        """Ids that write `data`, each the longest word that fits; up to where none does.

        >>> Words(table=(b"a", b"b", b"ab"), ends=(), encode=list).longest(b"abb")
        [2, 1]
        """
        ids: list[int] = []
        start = 0
        while start < len(data):
            ends = range(min(len(data), start + self.widest), start, -1)
            end = next((end for end in ends if data[start:end] in self._places), None)
            if end is None:
                break
            ids.append(self._places[data[start:end]])
            start = end
        return ids

    @cached_property
    def _places(self) -> dict[bytes, int]:
        return {word: number for number, word in reversed(list(enumerate(self.table))) if word}

    @cached_property
    def widest(self) -> int:
        """Bytes of the longest word."""
        return max(map(len, self.table))

    def begins(self, data: bytes) -> bool:
        """Whether some longer word begins with `data`."""
        # Words that begin with `data` stand together, `data` itself before them.
        place = bisect_right(self._sorted, data)
        return place < len(self._sorted) and self._sorted[place].startswith(data)

    @cached_property
    def _sorted(self) -> list[bytes]:
        return sorted(set(self.table))
