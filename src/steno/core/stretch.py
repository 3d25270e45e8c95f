"""KV that leaves its session: protocols of sessions and tiers whose tokens can be taken out and put back.

A row's KV is a function of its committed tokens, of the model, and of the cache form. So it may be stored, and put into
another row where all three are the same: `stamp` says in one string what the bits depend on beside the tokens. What is
stored and what is put back are the same bits, hence so is everything computed from them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from .session import Session
from .tier import Rope, Tier

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    Floats = npt.NDArray[np.float32]
    Arrays = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """The KV of the tokens [start, stop) of one row: arrays by part, and plain data (JSON) that says how they fit."""

    start: int
    stop: int
    arrays: "Arrays"
    meta: Mapping[str, object]

    @property
    def num_bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


@runtime_checkable
class Keeper(Session, Protocol):
    """A session whose rows' KV can be taken out and put back."""

    @property
    def stamp(self) -> str:
        """What the KV depends on beside the tokens: model, arithmetic and cache form. Equal stamps, equal bits."""
        ...

    @property
    def whole(self) -> bool:
        """A row can be stored from its first token on only: its older tokens are in a cache form."""
        ...

    @property
    def rope(self) -> Rope | None:
        """How the model turns its keys; None where it does not, or where that is not known."""
        ...

    def save(self, row: int, start: int = 0, stop: int | None = None) -> Stretch:
        """The tokens [start, stop) of a row as they lie; all by default. Raises ValueError for a part if `whole`."""
        ...

    def load(self, row: int, stretch: Stretch) -> None:
        """Commit what `save` gave to a row that is `stretch.start` long.

        Raises DataError where it does not fit this session, PromptError where the row would outgrow its capacity. A
        stretch from a session with another stamp is not looked for: ask first.
        """
        ...

    def read(self, row: int, start: int = 0) -> "tuple[Floats, Floats]":
        """Keys and values [L, G, T, D] of the tokens of a row from `start` on, as attention sees them.

        Raises CapsError where the cache form does not hold every token in every head.
        """
        ...

    def append(self, row: int, keys: "Floats", values: "Floats") -> None:
        """Commit T tokens whose keys and values [L, G, T, D] are known; a cache form seals what becomes due.

        Raises CapsError where the form has to see queries, PromptError where the row would outgrow its capacity.
        """
        ...


@runtime_checkable
class Storable(Tier, Protocol):
    """A tier that can be taken apart into tensors."""

    def fork(self, rows: Sequence[int]) -> "Storable": ...

    def state(self) -> "tuple[dict[str, Tensor], Mapping[str, object]]":
        """(tensors, plain data) from which `load` makes an equal tier."""
        ...

    def load(self, tensors: "dict[str, Tensor]", meta: Mapping[str, object]) -> None:
        """Take over the `state` of a tier of this form. Raises DataError where it has another shape."""
        ...

    def adopt(self, row: int, other: Tier) -> None:
        """Make a row what the only row of `other`, a tier of the same form, is. Nothing is copied."""
        ...
