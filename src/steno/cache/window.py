"""Attention sinks and a sliding window: a query sees the first `sinks` tokens and the newest `window`, itself included.

Efficient Streaming Language Models with Attention Sinks, section 3.2. The first tokens soak up attention that has
nowhere to go; dropping them is what breaks a plain window.

What differs from the paper: tokens keep the positions they had in the text (the paper numbers the slots of the cache
anew, which lets it run beyond the trained context and changes every score). What a query sees depends on positions
alone; memory is freed `block` tokens at a time, when no later query can see them any more.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from steno.core import Card, KVShape, Layout, Span, Tier

from .base import CacheKnob

if TYPE_CHECKING:
    from torch import Tensor

CARD = Card(
    paper="Efficient Streaming Language Models with Attention Sinks",
    keeps="near",
    breaks=("cache",),
    backends=("hf", "native"),
)


@dataclass(frozen=True, kw_only=True)
class Window(CacheKnob):
    """`window` of at least the model's context changes nothing."""

    card: ClassVar[Card] = CARD
    points: ClassVar = ({"window": 512}, {"window": 256}, {"window": 128, "block": 32})

    sinks: Annotated[int, Span(0, 1024, "tokens")] = 4
    window: Annotated[int, Span(1, 1 << 24, "tokens")] = 1024
    block: Annotated[int, Span(1, 4096, "tokens")] = 64

    def due(self, length: int) -> int:
        # The next query stands at `length` or later and sees keys above length - window.
        return max(0, length - self.window + 1) // self.block * self.block

    def sees(self, query: "Tensor", key: "Tensor") -> "Tensor":
        return (key < self.sinks) | (query - key < self.window)

    def open(self, shape: KVShape) -> Tier:
        from ._dense import DenseForm
        from ._paged import PagedTier

        return PagedTier(self, DenseForm(self.sinks), shape)

    def layout(self, head_dim: int) -> Layout:
        return Layout(residual=self.window - 1, block=self.block, sinks=self.sinks, window=self.window)
