"""Nucleus sampling: the smallest set of best tokens whose mass reaches `p` stays (of equals, lower ids first)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from steno.core import Card, Span

from .._law import softmax
from ..base import Floats, ShaperKnob
from ._nucleus import nucleus

CARD = Card(paper="The Curious Case of Neural Text Degeneration", task=True)


@dataclass(frozen=True, kw_only=True)
class TopP(ShaperKnob):
    """Equation 2 there. The best token always stays."""

    card: ClassVar[Card] = CARD

    p: Annotated[float, Span(0.0, 1.0)] = 0.95

    def shape(self, logits: Floats, past: Sequence[int]) -> Floats:
        if self.p >= 1.0:
            return logits
        inner = nucleus(logits, softmax(logits), self.p)
        kept = np.full_like(logits, -np.inf)
        kept[inner] = logits[inner]
        return kept
