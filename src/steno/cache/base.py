"""The room's protocol: a cache form is a record with three verbs.

Shapes: B batch, W nodes, N queries that share a key head (W * H / G), T tokens, S kept tokens, H query heads, G key
heads, D head width, C value channels that share a scale. Keys are stored as the model rotated them.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from steno.core import Knob, KVShape, Layout, Tier

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class CacheKnob(Knob, ABC):
    """A `core.CacheSpec`. Importing a form never imports torch; `open` does."""

    @abstractmethod
    def due(self, length: int) -> int:
        """How many of a row's first `length` tokens must have left the open buffer; never decreases with `length`."""

    def sees(self, query: "Tensor", key: "Tensor") -> "Tensor | None":
        """Visibility beyond causality of positions `key` [..., 1, S] to positions `query` [..., W, 1]; None: all."""
        return None

    @abstractmethod
    def open(self, shape: KVShape) -> Tier:
        """An empty tier. Raises KnobError where the form does not fit the shape."""

    def layout(self, head_dim: int) -> Layout | None:
        """The form in numbers, for backends that keep KV themselves; None: it runs where there are tensors.

        Raises KnobError where the form does not fit the head width.
        """
        return None
