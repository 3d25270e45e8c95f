"""Nucleus sampling: the smallest set of best tokens whose mass reaches `p` stays (of equals, lower ids first)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from steno.core import Card, Span

from .._law import softmax
from ..base import Floats, ShaperKnob

CARD = Card(paper="The Curious Case of Neural Text Degeneration", task=True)


FEW = 512


@dataclass(frozen=True, kw_only=True)
class TopP(ShaperKnob):
    """Equation 2 there. The best token always stays."""

    card: ClassVar[Card] = CARD

    p: Annotated[float, Span(0.0, 1.0)] = 0.95

    def shape(self, logits: Floats, past: Sequence[int]) -> Floats:
        if self.p >= 1.0:
            return logits
        law = softmax(logits)
        # Sorting a whole vocabulary costs more than a step of a small model; the best few hundred mostly hold the mass.
        best = (
            np.flatnonzero(logits >= np.partition(logits, -FEW)[-FEW]) if len(logits) > FEW else np.arange(len(logits))
        )
        if len(best) < len(logits) and law[best].sum() < self.p:
            best = np.arange(len(logits))
        order = best[np.argsort(-logits[best], kind="stable")]
        count = 1 + int(np.searchsorted(np.cumsum(law[order]), self.p, side="left"))
        kept = np.full_like(logits, -np.inf)
        kept[order[:count]] = logits[order[:count]]
        return kept
