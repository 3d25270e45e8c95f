"""H2O: each head keeps the tokens that have had the most attention so far, and the newest ones.

H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models, section 4. A few tokens get most
of the attention, and go on getting it; so the sum over past queries tells which to keep.

What differs from the paper: tokens are dropped `block` at a time at fixed lengths, not one at each step, so that what
is kept does not depend on how tokens came; a query's attention is counted once, when its own token leaves the dense
window, over what is held then; the heads that share keys vote together, by their mean; prefill forgets as decoding
does.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from steno.core import Card, KVShape, Span, Tier

from .base import BlockKnob

CARD = Card(
    paper="H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models",
    keeps="near",
    breaks=("cache",),
    backends=("hf",),
    requires=("hf",),
)


@dataclass(frozen=True, kw_only=True)
class H2O(BlockKnob):
    """`heavy` of at least the session's capacity changes nothing."""

    card: ClassVar[Card] = CARD
    points: ClassVar = ({"heavy": 256, "residual": 64}, {"heavy": 128, "residual": 64}, {"heavy": 64, "residual": 32})

    heavy: Annotated[int, Span(1, 1 << 24, "tokens per head")] = 256

    def open(self, shape: KVShape) -> Tier:
        from ._dense import DenseForm
        from ._kept import ObservingTier, Shelf
        from ._ranks import Received

        return ObservingTier(self, Received(), [[Shelf(DenseForm(), self.heavy)]] * shape.layers, shape)
