"""EMS: evict, then merge: each head keeps its best tokens, and what lies between best and worst joins its like.

EMS: Adaptive Evict-then-Merge Strategy for Head-wise KV Cache Compression Based on Global-Local Importance. A token is
worth the attention it has had in all (global), or that of the newest queries (local), whichever is more once both are
brought to one scale. The best of each head are centres; the worst are evicted; those between are merged into the centre
whose key is most like theirs, or evicted where none is like them.

What differs from the paper: a slot counts as often in attention as tokens are in it, and its key and value are their
plain mean, so that equal keys merge without loss (the paper weighs by score and counts a slot once); a head evicts what
scores below a share of its own mean, which evicts more where attention is sparse; choices fall every `block` tokens.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from steno.core import Card, KVShape, Span, Tier

from .base import ObservationKnob

CARD = Card(
    paper="EMS: Adaptive Evict-then-Merge Strategy for Head-wise KV Cache Compression Based on Global-Local Importance",
    keeps="near",
    breaks=("cache",),
    backends=("hf",),
    requires=("hf",),
)


@dataclass(frozen=True, kw_only=True)
class EMS(ObservationKnob):
    """`budget` slots per head; a `similarity` of 2 only evicts."""

    card: ClassVar[Card] = CARD
    ages: ClassVar[bool] = True
    points: ClassVar = (
        {"residual": 64},
        {"budget": 128, "residual": 64},
        {"budget": 128, "similarity": 2, "residual": 64},
    )

    budget: Annotated[int, Span(1, 1 << 24, "slots per head")] = 256
    similarity: Annotated[float, Span(-1, 2, "cosine")] = 0.6
    floor: Annotated[float, Span(0, 1000, "percent of the head's mean score")] = 10.0

    def open(self, shape: KVShape) -> Tier:
        from ._merge import MergingTier, Rule
        from ._ranks import Observed

        rule = Rule(budget=self.budget, similarity=self.similarity, floor=self.floor / 100)
        return MergingTier(self, Observed(self.window, self.kernel), rule, shape)
