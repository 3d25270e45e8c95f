"""VLCache: of a known piece in a new place, the first few tokens are computed again, and the rest is reused.

VLCache: Computing 2% Vision Tokens and Reusing 98% for Vision-Language Inference, sections 3 and 4. What a reused token
has wrong is what it never saw (its own error), and what later tokens take over from it (propagated error). The first
tokens of a piece pass on most, so they are the ones to compute: a small share of the piece, behind its new past.

What differs from the paper: pieces are text, since no vision model runs here; the share is the same in all layers (a
token that runs in a layer runs in all below it anyway); keys are turned to their new place, not stored before rotation.
A piece that begins the text is exact as it is, and none of it is computed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from steno.core import CacheSpec, Card, Model, Span

from ._move import check, keeper, place
from .base import Piece, ReuseKnob, Scene, Woven

CARD = Card(
    paper="VLCache: Computing 2% Vision Tokens and Reusing 98% for Vision-Language Inference",
    keeps="near",
    backends=("hf", "native"),
)


@dataclass(frozen=True, kw_only=True)
class VLCache(ReuseKnob):
    """Compute the first `share` of every known piece again; 0: none, 100: plain prefill."""

    card: ClassVar[Card] = CARD
    scene: ClassVar[Scene] = Scene.APART
    points: ClassVar = ({"share": 0}, {}, {"share": 20}, {"share": 50})

    share: Annotated[float, Span(0, 100, "percent of a piece")] = 5.0

    def weave(self, model: Model, pieces: Sequence[Piece], *, capacity: int, form: CacheSpec | None = None) -> Woven:
        check(pieces)
        session = keeper(model, capacity, form)
        reused = 0
        for number, piece in enumerate(pieces):
            again = len(piece.tokens)
            if piece.known is not None:
                exact = number == 0 and piece.at == 0
                again = 0 if exact else math.ceil(self.share * len(piece.tokens) / 100)
            session.prefill([list(piece.tokens[:again])])
            if again < len(piece.tokens):
                place(session, piece.cut(again))
            reused += len(piece.tokens) - again
        return Woven(session, session.lengths[0] - reused, reused)
