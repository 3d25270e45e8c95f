"""Min-p sampling: a token stays where its probability is at least `p` times the best one's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from steno.core import Card, Span

from ..base import Floats, ShaperKnob

CARD = Card(paper="Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs", task=True)


@dataclass(frozen=True, kw_only=True)
class MinP(ShaperKnob):
    """A ratio of probabilities is a difference of logits, so no softmax is needed."""

    card: ClassVar[Card] = CARD

    p: Annotated[float, Span(0.0, 1.0)] = 0.05

    def shape(self, logits: Floats, past: Sequence[int]) -> Floats:
        if self.p == 0.0:
            return logits
        edge = logits.max() + np.float32(math.log(self.p))
        return np.where(logits >= edge, logits, np.float32(-np.inf))
