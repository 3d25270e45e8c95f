"""Likelihood as a score: the geometric mean of the probabilities of a text's tokens, on the way as at the end."""

import math
from dataclasses import dataclass
from typing import ClassVar

from steno.core import Card

from ..base import Candidate, ScorerKnob

CARD = Card(task=True)


@dataclass(frozen=True, kw_only=True)
class Likelihood(ScorerKnob):
    """What a search asks for where it is told nothing else; 1 for a text of no tokens."""

    card: ClassVar[Card] = CARD

    def score(self, candidate: Candidate) -> float:
        return math.exp(sum(candidate.logs) / max(len(candidate.logs), 1))
