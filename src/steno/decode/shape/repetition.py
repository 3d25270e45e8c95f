"""Repetition penalty: logits of tokens seen before are divided by `penalty` where positive, multiplied where negative.

What differs from the paper: it divides throughout, which raises a negative logit; everybody has used this form since.
`past` is the prompt, the output and the node's own ancestors, so siblings in a draft never see one another's tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from steno.core import Card, Span

from ..base import Floats, ShaperKnob

CARD = Card(paper="CTRL: A Conditional Transformer Language Model for Controllable Generation", task=True)


@dataclass(frozen=True, kw_only=True)
class Repetition(ShaperKnob):
    """Section 4.1 there. 1 changes nothing; below 1 repetition is rewarded."""

    card: ClassVar[Card] = CARD

    penalty: Annotated[float, Span(0.01, 100.0)] = 1.1

    def shape(self, logits: Floats, past: Sequence[int]) -> Floats:
        if self.penalty == 1.0:
            return logits
        seen = np.fromiter(set(past), np.int64)
        penalty = np.float32(self.penalty)
        out = logits.copy()
        found = logits[seen]
        out[seen] = np.where(found < 0, found * penalty, found / penalty)
        return out
