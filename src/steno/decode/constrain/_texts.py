"""Places in one of several fixed texts, by the bytes that are left of each."""

from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from steno.core.errors import CapsError

from ..base import Bools, Constraint
from ._over import Over

if TYPE_CHECKING:
    from steno.tokens import Words


class Texts:
    """Implements `Constraint`: what is left is one of `rests`.

    then  the place after a rest, which a token may write past; None: the text ends there
    """

    def __init__(self, who: str, words: "Words", rests: tuple[bytes, ...], then: Constraint | None = None) -> None:
        self._who = who
        self._words = words
        self._rests = rests
        self._then = then

    def mask(self) -> Bools:
        out = np.zeros(len(self._words.table), np.bool_)
        firsts = _firsts(self._words)
        for first in {rest[0] for rest in self._rests if rest}:
            out[[token for token in firsts.get(first, ()) if self._fits(token)]] = True
        if b"" in self._rests:
            out[list(self._words.ends)] = True
        if not out.any():
            raise CapsError(
                f"{self._who}: no token of this vocabulary writes any of {self._rests}. Choose another model."
            )
        return out

    def allows(self, token: int) -> bool:
        if token in self._words.ends:
            return b"" in self._rests
        return 0 <= token < len(self._words.table) and self._fits(token)

    def advance(self, token: int) -> Constraint:
        if token in self._words.ends:
            return Over(self._words)
        word = self._words.table[token]
        rests = tuple([rest[len(word) :] for rest in self._rests if rest.startswith(word)])
        if self._then is not None and not any(rests):
            # A token may go past the rest: what it writes there counts.
            return self._then.advance(token) if not rests else self._then
        return Texts(self._who, self._words, rests, self._then)

    def forced(self) -> Sequence[int]:
        """What all rests begin with. Its last token may be part of a longer one, unless the text ends there."""
        low, high = min(self._rests), max(self._rests)
        same = next((i for i, (one, two) in enumerate(zip(low, high, strict=False)) if one != two), len(low))
        shared = low[:same]
        tokens = list(self._words.encode(shared))
        if self._then is None and shared in self._rests and len(self._rests) == 1:
            return [*tokens, *self._words.ends[:1]]
        return tokens[:-1]

    def _fits(self, token: int) -> bool:
        word = self._words.table[token]
        past = self._then is not None
        return bool(word) and any(rest.startswith(word) or (past and word.startswith(rest)) for rest in self._rests)


class Free:
    """Anything may come, and nothing but an end after `lines` lines that are not blank; 0: no such end.

    begun  whether the line has anything but blanks
    """

    def __init__(self, words: "Words", lines: int = 0, *, begun: bool = False) -> None:
        self._words = words
        self._lines = lines
        self._begun = begun

    def mask(self) -> Bools:
        return np.ones(len(self._words.table), np.bool_)

    def allows(self, token: int) -> bool:
        return 0 <= token < len(self._words.table)

    def advance(self, token: int) -> Constraint:
        if not self._lines:
            return self
        if token in self._words.ends:
            return Over(self._words)
        lines, begun = self._lines, self._begun
        head, *rest = self._words.table[token].split(b"\n")
        begun = begun or bool(head.strip())
        for part in rest:
            lines -= begun
            begun = bool(part.strip())
        return Free(self._words, lines, begun=begun) if lines > 0 else Over(self._words)

    def forced(self) -> Sequence[int]:
        return ()


def _firsts(words: "Words") -> dict[int, list[int]]:
    """Tokens by their first byte."""
    found = _known.get(words)
    if found is None:
        found = _known[words] = {}
        for token, word in enumerate(words.table):
            if word:
                found.setdefault(word[0], []).append(token)
    return found


_known: "WeakKeyDictionary[Words, dict[int, list[int]]]" = WeakKeyDictionary()
