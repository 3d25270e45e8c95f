"""What this room reads and writes, and how damage is called. It sees the model only as `core.Predictor`.

Shape legend: B lanes, W columns of a pass, V vocabulary.

DataError (core)
|-- Corrupt          what is stored does not fit its own checks
|-- Truncated        it ends early
`-- LimitExceeded    it asks for more than a reader grants
UserError (core)
`-- WrongModel       it was written with another model, or this machine computes other numbers
"""

from typing import TYPE_CHECKING, Protocol

from steno.core.errors import DataError, UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Corrupt(DataError):
    """What is stored does not fit its own checks."""


class Truncated(DataError):
    """What is stored ends early."""


class LimitExceeded(DataError):
    """What is stored asks for more than a reader grants."""


class WrongModel(UserError):
    """What is stored needs another model, or a machine that computes the same numbers."""


class Spelling(Protocol):
    """Bytes <-> symbols of a predictor; `tokens.Tokenizer` is one."""

    def encode_bytes(self, data: bytes) -> list[int]: ...

    def decode_bytes(self, ids: list[int]) -> bytes: ...

    def token_bytes(self, token: int) -> bytes: ...


class Draft(Protocol):
    """Guesses what comes next while decoding. It may be wrong: the bytes decoded never depend on it."""

    def draft(self, width: int, /) -> "npt.NDArray[np.int32]":
        """[B, width] guessed symbols of every lane, -1 after the last guess."""
        ...
