"""Parallel context encoding, with a shared prefix as attention sink and contexts chosen query by query.

Attention Entropy is a Key Factor: An Analysis of Parallel Context Encoding with Full-attention-based Pre-trained
Language Models, section 4. Contexts that are read apart each begin with a sink of their own, and a query that sees them
all spreads its attention: its entropy is higher than the model knows. Two remedies need no training: a prefix that all
contexts share, so that there is one sink, and attention to the few contexts that matter.

What differs from the paper: the sink is the first piece of the text and stands once; contexts are chosen by the
log-sum-exp of their scores, which attention has at hand, head by head and query by query.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from steno.core import CacheSpec, Card, Model, Span

from .base import Piece, ReuseKnob, Scene, Woven

CARD = Card(
    paper=(
        "Attention Entropy is a Key Factor: An Analysis of Parallel Context Encoding with Full-attention-based "
        "Pre-trained Language Models"
    ),
    keeps="near",
    backends=("hf",),
    requires=("hf",),
)


@dataclass(frozen=True, kw_only=True)
class Parallel(ReuseKnob):
    """The first piece is the sink; a query looks at the `select` contexts of the largest mass, 0: at all."""

    card: ClassVar[Card] = CARD
    scene: ClassVar[Scene] = Scene.APART
    points: ClassVar = ({"select": 0}, {"select": 1}, {"select": 2})

    select: Annotated[int, Span(0, 1024, "contexts")] = 2

    def weave(self, model: Model, pieces: Sequence[Piece], *, capacity: int, form: CacheSpec | None = None) -> Woven:
        from ._parallel import Mix, beside

        return beside(model, pieces, Mix(select=self.select), capacity, form)
