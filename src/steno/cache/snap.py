"""SnapKV: each head keeps the tokens that the newest queries look at, with their neighbours, and the newest ones.

SnapKV: LLM Knows What You are Looking for Before Generation, section 4. The last queries of a prompt already look where
the answer's will. Attention is smoothed before the choice, so that what is kept are passages and not lone tokens.

What differs from the paper: it chooses once, when the prompt ends; here a choice is made every `block` tokens, since a
cache that must not depend on how tokens came cannot know where a prompt ends. A token that no one looked at for a while
is therefore gone before the question comes: worse than the paper where the question stands behind a long context, and
bounded in memory however long the text. The heads that share keys vote together, by their mean.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from steno.core import Card, KVShape, Span, Tier

from .base import ObservationKnob

CARD = Card(
    paper="SnapKV: LLM Knows What You are Looking for Before Generation",
    keeps="near",
    breaks=("cache",),
    backends=("hf",),
    requires=("hf",),
)


@dataclass(frozen=True, kw_only=True)
class Snap(ObservationKnob):
    """The newest `window` queries choose `budget` tokens; a budget of the session's capacity changes nothing."""

    card: ClassVar[Card] = CARD
    points: ClassVar = ({"budget": 256, "residual": 64}, {"budget": 128, "residual": 64})

    budget: Annotated[int, Span(1, 1 << 24, "tokens per head")] = 256

    def open(self, shape: KVShape) -> Tier:
        from ._dense import DenseForm
        from ._kept import ObservingTier, Shelf
        from ._ranks import Observed

        policy = Observed(self.window, self.kernel)
        return ObservingTier(self, policy, [[Shelf(DenseForm(), self.budget)]] * shape.layers, shape)
