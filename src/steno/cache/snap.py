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

from steno.core import Card, KVShape, OneOf, Span, Tier

from ._checks import at_most
from .base import CacheKnob

CARD = Card(
    paper="SnapKV: LLM Knows What You are Looking for Before Generation",
    keeps="near",
    breaks=("cache",),
    backends=("hf",),
    requires=("hf",),
)


@dataclass(frozen=True, kw_only=True)
class Snap(CacheKnob):
    """The newest `window` queries choose `budget` tokens; a budget of the session's capacity changes nothing."""

    card: ClassVar[Card] = CARD
    points: ClassVar = ({"budget": 256, "residual": 64}, {"budget": 128, "residual": 64})

    budget: Annotated[int, Span(1, 1 << 24, "tokens per head")] = 256
    window: Annotated[int, Span(1, 1024, "tokens")] = 32
    kernel: Annotated[int, OneOf(1, 3, 5, 7, 9, 11, 13)] = 7
    residual: Annotated[int, Span(1, 1 << 24, "tokens")] = 128
    block: Annotated[int, Span(1, 4096, "tokens")] = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        at_most(self, "window", "residual")

    def due(self, length: int) -> int:
        return max(0, length - self.residual) // self.block * self.block

    def open(self, shape: KVShape) -> Tier:
        from ._dense import DenseForm
        from ._kept import ObservingTier, Shelf
        from ._ranks import Observed

        policy = Observed(self.window, self.kernel)
        return ObservingTier(self, policy, [[Shelf(DenseForm(), self.budget)]] * shape.layers, shape)
