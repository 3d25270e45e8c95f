"""The room's protocol: a cache form is a record with three verbs.

Shapes: B batch, W nodes, N queries that share a key head (W * H / G), T tokens, S kept tokens, H query heads, G key
heads, D head width, C value channels that share a scale. Keys are stored as the model rotated them.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from steno.core import Knob, KVShape, Layout, OneOf, Span, Tier
from steno.core.errors import KnobError

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


@dataclass(frozen=True, kw_only=True)
class BlockKnob(CacheKnob, ABC):
    """A form that seals `block` tokens at a time, as soon as `residual` newer ones stand behind them."""

    residual: Annotated[int, Span(0, 1 << 24, "tokens")] = 128
    block: Annotated[int, Span(1, 4096, "tokens")] = 32

    def due(self, length: int) -> int:
        return max(0, length - self.residual) // self.block * self.block


@dataclass(frozen=True, kw_only=True)
class ObservationKnob(BlockKnob, ABC):
    """A form in which the newest `window` queries choose, their attention smoothed over `kernel` neighbours."""

    residual: Annotated[int, Span(1, 1 << 24, "tokens")] = 128
    window: Annotated[int, Span(1, 1024, "tokens")] = 32
    kernel: Annotated[int, OneOf(1, 3, 5, 7, 9, 11, 13)] = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window > self.residual:
            raise KnobError(
                f"{self.name}: window must be at most residual ({self.residual}), got {self.window}. "
                f"Set it with --set {self.name}.window={self.residual}"
            )
