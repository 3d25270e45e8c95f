"""Temperature: logits divided by `temperature`; 0 is the limit, all mass on the best token (the lowest id)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from steno.core import Card, Span

from ..base import Floats, ShaperKnob

CARD = Card(task=True)


@dataclass(frozen=True, kw_only=True)
class Temperature(ShaperKnob):
    """A plan with a temperature samples, one without decodes greedily."""

    card: ClassVar[Card] = CARD

    temperature: Annotated[float, Span(0.0, 100.0)] = 1.0

    def shape(self, logits: Floats, past: Sequence[int]) -> Floats:
        if self.temperature > 0.0:
            return logits / np.float32(self.temperature)
        only = np.full_like(logits, -np.inf)
        only[logits.argmax()] = 0.0
        return only
