"""Group position encoding: a source that is still arriving and the text that answers it count positions apart.

LLM as Effective Streaming Processor: Bridging Streaming-Batch Mismatches with Group Position Encoding, section 4. A
model that answers while it reads meets source and answer by turns. Counted in one row, every new part of the source
would move the answer, or stand behind it. In groups, the source has the positions 0, 1, 2, ..., and the answer counts
from `offset`: nothing ever moves, so nothing is computed twice. The source sees itself alone, as it would in a batch,
and the answer sees what of the source has arrived, and itself.

What differs from the paper: no model is tuned to it here; the offset is a field of the method, and 1 at least.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from steno.core import CacheSpec, Card, Model, Span

from .base import Piece, ReuseKnob, Scene, Woven

CARD = Card(
    paper=("LLM as Effective Streaming Processor: Bridging Streaming-Batch Mismatches with Group Position Encoding"),
    keeps="near",
    backends=("hf",),
    requires=("hf",),
)


@dataclass(frozen=True, kw_only=True)
class Group(ReuseKnob):
    """Pieces are source and answer by turns, the source first; the row then goes on with the answer."""

    card: ClassVar[Card] = CARD
    scene: ClassVar[Scene] = Scene.STREAM
    points: ClassVar = ({}, {"offset": 256}, {"offset": 512})

    offset: Annotated[int, Span(1, 1 << 24, "tokens")] = 1

    def weave(self, model: Model, pieces: Sequence[Piece], *, capacity: int, form: CacheSpec | None = None) -> Woven:
        from ._groups import stream

        return stream(model, pieces, self.offset, capacity, form)
