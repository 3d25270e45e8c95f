"""The Predictor protocol: p(next symbol | past) as the coders need it, and nothing a coder does not need."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Streams(Protocol):
    """B streams of symbols, each with a past of its own, empty at first; `start` is the first symbol to hand in."""

    def room(self) -> int:
        """Most columns `ahead` takes now; at least 1. It depends on how many symbols were kept, and on nothing else."""
        ...

    def ahead(self, symbols: "npt.NDArray[np.int32]") -> "npt.NDArray[np.float32]":
        """[B, W, V] scores of what follows symbols[b, : w + 1] after the past of stream b; valid until the next call.

        Nothing is kept: the columns are drafts. -1 pads the end of a stream's line; its scores are unspecified.
        """
        ...

    def keep(self, counts: Sequence[int]) -> None:
        """The first `counts[b]` symbols of the last `ahead` become part of the past of stream b."""
        ...


class Predictor(Protocol):
    """A deterministic source of next-symbol scores.

    Two predictors with equal `fingerprint` give equal scores, bit for bit, for equal pasts: on any machine, whatever
    stands in the other streams, and however the past was cut into calls. This is what a decoder relies on.
    """

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str:
        """Hex digest of everything the scores depend on."""
        ...

    @property
    def vocab(self) -> int: ...

    @property
    def start(self) -> int:
        """The symbol every stream begins with."""
        ...

    def open(self, streams: int) -> Streams: ...
