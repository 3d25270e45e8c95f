"""Best of two: ask both drafters, and take the draft that promises more.

A draft's promise is the sum of its scores, the tokens it expects to be accepted: the choice of SuffixDecoding between
its trees, and of Arctic's hybrid between suffix matches and a model, over any two drafters. Of equals the first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from steno.core import Card

from ..base import Draft, Drafter, DrafterKnob
from ._parts import Parts, expected, part

CARD = Card(keeps="bits", breaks=("decode.draft", "decode.search"))


@dataclass(frozen=True, kw_only=True)
class Best(DrafterKnob):
    """Costs the time of both; `decode.draft.first` asks the second only where it must."""

    card: ClassVar[Card] = CARD

    first: DrafterKnob = part("lookup")
    second: DrafterKnob = part("suffix")

    def open(self, rows: int, vocab: int) -> Drafter:
        return _Best((self.first, self.second), rows, vocab)


class _Best(Parts):
    def propose(self, row: int, ids: Sequence[int], budget: int, ahead: Sequence[int] = ()) -> Draft:
        return max((self.ask(i, row, ids, budget, ahead) for i in range(2)), key=expected)
