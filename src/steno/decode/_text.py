"""Text as it grows, and stop strings across token borders."""

from collections.abc import Callable, Sequence
from itertools import accumulate

Decoder = Callable[[Sequence[int]], str]

BROKEN = "\ufffd"


def unmarked(decode: Decoder, ids: Sequence[int], ends: frozenset[int]) -> list[int]:
    """Ids without end tokens and without a mark of the beginning, a first token written <like this>."""
    words = [token for token in ids if token not in ends]
    if words and (name := decode(words[:1])).startswith("<") and name.endswith(">") and len(name) > 2:
        words = words[1:]
    return words


def borders(decode: Decoder, ids: Sequence[int]) -> list[int]:
    """Where in their text tokens begin and end: token i has the characters from out[i] to out[i + 1]."""
    sizes = [len(decode([token])) for token in ids]
    if sum(sizes) == len(decode(ids)):
        return list(accumulate(sizes, initial=0))
    # Tokens that are parts of a character only come out right together.
    return [len(decode(ids[:count])) for count in range(len(ids) + 1)]


class Tail:
    """The text of one request, token by token. What may yet become a stop string is held back.

    A short window of ids is decoded twice and the difference is the news, so that spaces at token borders come out
    right; a character that is not whole yet waits.
    """

    def __init__(self, decode: Decoder, stops: tuple[str, ...]) -> None:
        self._decode = decode
        self._stops = stops
        self._ids: list[int] = []
        self._start = self._read = 0
        self._held = ""
        self._fresh: list[str] = []
        self.stopped = False

    def push(self, token: int) -> bool:
        """Take a token; True where a stop string is complete."""
        self._ids.append(token)
        return self._take(final=False)

    def take(self) -> str:
        """The text that became certain since the last call."""
        out = "".join(self._fresh)
        self._fresh.clear()
        return out

    def close(self) -> None:
        """No more tokens: what was held back is text after all."""
        if not self.stopped and not self._take(final=True):
            self._fresh.append(self._held)
            self._held = ""

    def _take(self, *, final: bool) -> bool:
        before = self._decode(self._ids[self._start : self._read])
        after = self._decode(self._ids[self._start :])
        if len(after) <= len(before) or (after.endswith(BROKEN) and not final):
            return False
        self._start, self._read = self._read, len(self._ids)
        text = self._held + after[len(before) :]
        places = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        if places:
            self.stopped = True
            self._held = ""
            self._fresh.append(text[: min(places)])
            return True
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        self._fresh.append(text[: len(text) - held])
        return False


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
