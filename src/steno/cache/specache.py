"""SpeCache: few bits stay near, every token as it came is kept far, and the ones that matter are fetched ahead.

SpeCache: Speculative Key-Value Caching for Efficient Generation of LLMs, sections 3 and 4. All tokens stand in one or
two bits where attention runs; the full-precision cache is off-loaded. Each step fetches, head by head, the tokens with
the best scores, and uses them in the place of their codes. A guess of the next token runs beside the real one, and what
its query asks for is on its way while the real step is still computing.

What differs from the paper: a query gets the tokens that it asks for itself, and waits for those that no guess had
asked for; there, it takes what the guess had fetched. So the text does not depend on guesses, and drafts, which are the
guesses here, stay free to be anything. The far copy may be a file. Fetching is synchronous: what of it an accelerator
would hide is counted (`Traffic`), not timed, since none was at hand.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from steno.core import Card, KVShape, OneOf, Span, Tier

from .base import CacheKnob

CARD = Card(
    paper="SpeCache: Speculative Key-Value Caching for Efficient Generation of LLMs",
    keeps="near",
    breaks=("cache",),
    backends=("hf",),
    requires=("hf",),
)


@dataclass(frozen=True, kw_only=True)
class SpeCache(CacheKnob):
    """`fetch` tokens per query and head are used as they came; `on_disk` keeps the far copy in a file."""

    card: ClassVar[Card] = CARD
    points: ClassVar = ({"residual": 32}, {"fetch": 16, "residual": 32}, {"bits": 4, "residual": 32, "on_disk": True})

    mixes: ClassVar[bool] = True
    """Two queries may see one token in two precisions, so no single cache can be shown for all."""

    bits: Annotated[int, OneOf(8, 4, 3, 2)] = 2
    fetch: Annotated[int, Span(0, 1 << 20, "tokens")] = 64
    on_disk: bool = False
    residual: Annotated[int, Span(0, 1 << 24, "tokens")] = 64
    block: Annotated[int, OneOf(32, 64, 128, 256)] = 64

    def due(self, length: int) -> int:
        return max(0, length - self.residual) // self.block * self.block

    def open(self, shape: KVShape) -> Tier:
        from ._far import FarForm, FarTier
        from ._grid import BlockForm, Grid

        grid = Grid(self.bits, self.bits, (self.block, shape.head_dim))
        return FarTier(self, FarForm(BlockForm(grid, self.block), self.on_disk), shape, self.fetch)
