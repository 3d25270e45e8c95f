"""Top-k sampling: the `k` best tokens stay. Of equal logits the lower id stays, so exactly k do."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from steno.core import Card, Span

from ..base import Floats, ShaperKnob

CARD = Card(paper="Hierarchical Neural Story Generation", task=True)


@dataclass(frozen=True, kw_only=True)
class TopK(ShaperKnob):
    """`k` of at least the vocabulary changes nothing."""

    card: ClassVar[Card] = CARD

    k: Annotated[int, Span(1, 1 << 20, "tokens")] = 50

    def shape(self, logits: Floats, past: Sequence[int]) -> Floats:
        if self.k >= len(logits):
            return logits
        edge = np.partition(logits, -self.k)[-self.k]
        kept = np.where(logits > edge, logits, np.float32(-np.inf))
        ties = np.flatnonzero(logits == edge)[: self.k - int((logits > edge).sum())]
        kept[ties] = logits[ties]
        return kept
