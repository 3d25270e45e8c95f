"""The Predictor protocol: p(next symbol | past) as the coders need it, and nothing a coder does not need."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Predictor(Protocol):
    """A deterministic source of next-symbol scores over B streams at once.

    Two predictors with equal `fingerprint` give equal scores for equal pasts, on any machine: this is what a decoder
    relies on.
    """

    @property
    def fingerprint(self) -> str: ...

    @property
    def vocab(self) -> int: ...

    def scores(self) -> "npt.NDArray[np.float32]":
        """[B, V] logits of the next symbol of every stream."""
        ...

    def push(self, symbols: Sequence[int]) -> None:
        """Append one symbol to every stream."""
        ...
