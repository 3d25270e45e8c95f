"""Non-monotonic self-terminating decoding: the probability that a text ends may rise and fall, but not stay small.

Equation 9 of the paper: with the lower bound f(t) = 1 - (1 - epsilon)^t the t-th token of the text ends it with

    p_end(t) = (1 - s) f(t) + s,

and the other tokens share the rest as they did. f tends to 1, so every decoding ends: once t passes log(1/2) /
log(1 - epsilon), greedy decoding, any beam and any nucleus hold the end, whatever the model says.

What differs from the paper: s is the model's own probability of an end, where the paper trains a head for it and the
model around it. So this is the rule of inference alone; that training leaves perplexity as it was is not shown here.
t counts from the end of the prompt. Where ends are unknown, ignored or forbidden nothing changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from steno.core import Card, Span

from .._law import softmax
from ..base import About, Floats, ShaperKnob

CARD = Card(paper="A Non-monotonic Self-terminating Language Model", task=True)


@dataclass(frozen=True, kw_only=True)
class Nmst(ShaperKnob):
    """Put it behind the temperature: it hands out a law's logarithms."""

    card: ClassVar[Card] = CARD
    points = ({}, {"epsilon": 0.01})

    epsilon: Annotated[float, Span(1e-9, 1.0)] = 5e-4

    def shape(self, logits: Floats, past: Sequence[int]) -> Floats:
        return logits

    def shape_within(self, logits: Floats, past: Sequence[int], about: About) -> Floats:
        law = softmax(logits)
        ends = [end for end in sorted(about.ends) if end < len(law)]
        own = law[ends].sum()
        if not own:
            return logits
        least = 1.0 - (1.0 - self.epsilon) ** (len(past) - about.start + 1)
        wanted = own + (1.0 - own) * least
        share = law[ends] * (wanted / own)
        law *= 1.0 - least
        law[ends] = share
        with np.errstate(divide="ignore"):
            return np.log(law).astype(np.float32)
