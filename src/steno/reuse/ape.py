"""APE: contexts are read apart, in parallel or ahead of time, and attention to them is sharpened and scaled.

APE: Faster and Longer Context-Augmented Generation via Adaptive Parallel Encoding, sections 3 and 4. Every context is
computed behind a shared prefix as if it were alone, at the same positions, so its KV can be kept and used in any
company. Read one after another, contexts get sharper attention than side by side: so their scores are divided by a
temperature T < 1, and the mass they reach together is scaled, in the log-sum-exp, by S.

What differs from the paper: T and S are chosen by hand or by `steno bench`, not by a search on a validation set.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from steno.core import CacheSpec, Card, Model, Span

from .base import Piece, ReuseKnob, Scene, Woven

CARD = Card(
    paper="APE: Faster and Longer Context-Augmented Generation via Adaptive Parallel Encoding",
    keeps="near",
    backends=("hf",),
    requires=("hf",),
)


@dataclass(frozen=True, kw_only=True)
class Ape(ReuseKnob):
    """The first piece is the prefix that all others, the contexts, share. Both numbers 1: plain parallel encoding."""

    card: ClassVar[Card] = CARD
    scene: ClassVar[Scene] = Scene.APART
    points: ClassVar = ({}, {"temperature": 1.0, "scale": 1.0})

    temperature: Annotated[float, Span(0.1, 2)] = 0.9
    scale: Annotated[float, Span(0.1, 2)] = 0.9

    def weave(self, model: Model, pieces: Sequence[Piece], *, capacity: int, form: CacheSpec | None = None) -> Woven:
        from ._parallel import Mix, beside

        return beside(model, pieces, Mix(temperature=self.temperature, scale=self.scale), capacity, form)
