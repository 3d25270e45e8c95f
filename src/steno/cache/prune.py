"""Quantised pruning: of one memory budget, more tokens in fewer bits.

More Tokens, Lower Precision: Towards the Optimal Token-Precision Trade-off in KV Cache Compression. Dropping tokens and
rounding them spend the same bytes in two ways; four times the tokens in 4 bits beat the tokens in 16. Each head keeps
the tokens that the newest queries look at (SnapKV), quantised by groups of channels when they leave the dense window.

What differs from the paper: a choice is made every `block` tokens (see cache.snap), and both keys and values are
quantised token by token, since a group that runs over tokens cannot lose one of them.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from steno.core import Card, KVShape, OneOf, Span, Tier

from .base import ObservationKnob

CARD = Card(
    paper="More Tokens, Lower Precision: Towards the Optimal Token-Precision Trade-off in KV Cache Compression",
    keeps="near",
    breaks=("cache",),
    backends=("hf",),
    requires=("hf",),
)


@dataclass(frozen=True, kw_only=True)
class Prune(ObservationKnob):
    """`tokens` per head in `bits`; 16 bits prunes only, and `tokens` of the session's capacity quantises only."""

    card: ClassVar[Card] = CARD
    points: ClassVar = ({"tokens": 64, "bits": 16, "residual": 32}, {"tokens": 256, "bits": 4, "residual": 32})

    tokens: Annotated[int, Span(1, 1 << 24, "tokens per head")] = 1024
    bits: Annotated[int, OneOf(16, 8, 4, 3, 2)] = 4
    group: Annotated[int, Span(8, 1024, "channels")] = 64

    def open(self, shape: KVShape) -> Tier:
        from ._dense import DenseForm
        from ._kept import ObservingTier, Shelf
        from ._ranks import Observed
        from ._token import TokenForm, fit_group

        dim = shape.head_dim
        form = DenseForm() if self.bits == 16 else TokenForm(self.bits, self.bits, fit_group(self.group, dim), dim)
        policy = Observed(self.window, self.kernel)
        return ObservingTier(self, policy, [[Shelf(form, self.tokens)]] * shape.layers, shape)
