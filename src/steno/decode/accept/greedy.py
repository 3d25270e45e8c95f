"""Greedy acceptance: a draft token stands where it is the model's own best token.

The output is that of plain greedy decoding on the same session. Ties go to the lowest id.
"""

from dataclasses import dataclass
from typing import ClassVar

from steno.core import Card

from .._walk import follow
from ..base import AcceptorKnob, Draft, View

CARD = Card(keeps="bits", breaks=("decode.accept", "decode.search"))


@dataclass(frozen=True, kw_only=True)
class Greedy(AcceptorKnob):
    """Exact match with the arg max, one choice per node of a tree."""

    card: ClassVar[Card] = CARD

    def verify(self, draft: Draft, view: View) -> tuple[list[int], int]:
        return follow(draft, view.best)
