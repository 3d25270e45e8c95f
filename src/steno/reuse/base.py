"""The room's protocol: a method weaves one row from pieces of text, some of which have been computed before.

What was computed in one place is used in another: behind another past, at another position. That is exact where past
and position are the same, and an approximation everywhere else; a method says which tokens it computes again.

Shapes: L layers, G key heads, T tokens, D head width.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from steno.core import CacheSpec, Keeper, Knob, Model

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Tokens of a text; `keys` and `values` [L, G, T, D] where they are known, the keys turned for `at` onwards."""

    tokens: tuple[int, ...]
    keys: Floats | None = None
    values: Floats | None = None
    at: int = 0

    @property
    def known(self) -> tuple[Floats, Floats] | None:
        """Keys and values, or None where they have to be computed."""
        return None if self.keys is None or self.values is None else (self.keys, self.values)

    def cut(self, start: int, stop: int | None = None) -> "Piece":
        """The tokens [start, stop) of the piece."""
        span = slice(start, stop)
        keys, values = (None if x is None else x[:, :, span] for x in (self.keys, self.values))
        return Piece(tokens=self.tokens[span], keys=keys, values=values, at=self.at + start)


@dataclass(frozen=True, slots=True)
class Woven:
    """A one-row session that holds the pieces, and how many of their tokens were computed and how many reused."""

    session: Keeper
    computed: int
    reused: int


class Scene(Enum):
    """Where pieces come from.

    EDIT    a text that has changed in places
    APART   a prefix, and contexts that were computed without each other
    STREAM  a source that is still arriving (every even piece) and the text that answers it (every odd one)
    """

    EDIT = auto()
    APART = auto()
    STREAM = auto()


@dataclass(frozen=True, kw_only=True)
class ReuseKnob(Knob, ABC):
    """A method of the room; `scene` is what it is for."""

    scene: ClassVar[Scene] = Scene.EDIT

    @abstractmethod
    def weave(self, model: Model, pieces: Sequence[Piece], *, capacity: int, form: CacheSpec | None = None) -> Woven:
        """A row of `pieces` in the cache form `form`, in a new session with room for `capacity` tokens.

        Raises CapsError where the model or the form does not let its KV be moved.
        """
