"""The place past an end token."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..base import Bools

if TYPE_CHECKING:
    from steno.tokens import Words


class Over:
    """Nothing may come but an end token again: nodes of a draft below one are asked, and cut off."""

    def __init__(self, words: "Words") -> None:
        self._words = words

    def mask(self) -> Bools:
        out = np.zeros(len(self._words.table), np.bool_)
        out[list(self._words.ends)] = True
        return out

    def allows(self, token: int) -> bool:
        return token in self._words.ends

    def advance(self, token: int) -> "Over":
        return self

    def forced(self) -> Sequence[int]:
        return ()
