"""Staircase quantisation: the older a token, the fewer its bits: 8, then 4, then 2.

The Nature of Mathematical Modeling and Probabilistic Optimization Engineering in Generative AI, the part on gradual
quantisation of the KV cache. Attention fades with distance, so precision may fade with age. A token is rounded anew
each time it goes down a step.

What differs from the paper: only its abstract was at hand, which gives no lengths and no quantiser; steps, lengths and
grids are ours. Tokens step down `block` at a time, at fixed lengths.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from steno.core import Card, KVShape, Span, Tier

from .base import BlockKnob

CARD = Card(
    paper="The Nature of Mathematical Modeling and Probabilistic Optimization Engineering in Generative AI",
    keeps="near",
    breaks=("cache",),
    backends=("hf",),
    requires=("hf",),
)


@dataclass(frozen=True, kw_only=True)
class Staircase(BlockKnob):
    """`first` tokens in 8 bits behind the dense window, `second` in 4, all older ones in 2."""

    card: ClassVar[Card] = CARD
    ages: ClassVar[bool] = True
    points: ClassVar = ({"first": 128, "second": 256, "residual": 32},)

    first: Annotated[int, Span(0, 1 << 24, "tokens")] = 128
    second: Annotated[int, Span(0, 1 << 24, "tokens")] = 512
    group: Annotated[int, Span(8, 1024, "channels")] = 32
    residual: Annotated[int, Span(0, 1 << 24, "tokens")] = 64

    def open(self, shape: KVShape) -> Tier:
        from ._kept import KeptTier, Shelf
        from ._ranks import Newest
        from ._token import TokenForm, fit_group

        group = fit_group(self.group, shape.head_dim)
        steps = ((8, self.first), (4, self.second), (2, None))
        shelves = [Shelf(TokenForm(bits, bits, group, shape.head_dim), most) for bits, most in steps]
        return KeptTier(self, Newest(), [shelves] * shape.layers, shape)
