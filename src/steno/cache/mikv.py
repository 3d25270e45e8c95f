"""MiKV: no token is dropped; the important ones keep their precision, the others are kept in few bits.

No Token Left Behind: Reliable KV Cache Compression via Importance-Aware Mixed Precision Quantization. What eviction
throws away is what later questions may ask for, and a rounded token is still there. Importance is the attention a token
has had (H2O); the `important` first tokens of each head stay as they are, what falls behind them is quantised once.

What differs from the paper: its balancer of outlier channels is left out, narrow groups of channels stand in for it; a
token that turns out important after it was rounded stays rounded, since its precision is gone.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from steno.core import Card, KVShape, OneOf, Span, Tier

from .base import BlockKnob

CARD = Card(
    paper="No Token Left Behind: Reliable KV Cache Compression via Importance-Aware Mixed Precision Quantization",
    keeps="near",
    breaks=("cache",),
    backends=("hf",),
    requires=("hf",),
)


@dataclass(frozen=True, kw_only=True)
class MiKV(BlockKnob):
    """`important` of at least the session's capacity changes nothing (at `high_bits` 16)."""

    card: ClassVar[Card] = CARD
    ages: ClassVar[bool] = True
    points: ClassVar = ({"important": 64, "residual": 32}, {"important": 64, "low_bits": 2, "residual": 32})

    important: Annotated[int, Span(1, 1 << 24, "tokens per head")] = 128
    high_bits: Annotated[int, OneOf(16, 8)] = 16
    low_bits: Annotated[int, OneOf(4, 3, 2)] = 3
    group: Annotated[int, Span(8, 1024, "channels")] = 32

    def open(self, shape: KVShape) -> Tier:
        from ._dense import DenseForm
        from ._kept import ObservingTier, Shelf
        from ._ranks import Received
        from ._token import TokenForm, fit_group

        dim = shape.head_dim
        group = fit_group(self.group, dim)
        high = DenseForm() if self.high_bits == 16 else TokenForm(8, 8, group, dim)
        shelves = [Shelf(high, self.important), Shelf(TokenForm(self.low_bits, self.low_bits, group, dim))]
        return ObservingTier(self, Received(), [shelves] * shape.layers, shape)
