"""First hit: ask drafters in order, and take the first draft that promises enough.

What serving engines do with several drafters (an n-gram match, else a model), and the rule of SAM Decoding (a long
match in the text, else a tree): the cheap and sure one first. A draft's promise is the sum of its scores, the tokens
it expects to be accepted. Where none reaches `enough`, the last one that drafted anything is taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from steno.core import Card, Span

from ..base import Draft, Drafter, DrafterKnob
from ._parts import Parts, expected, part

CARD = Card(keeps="bits", breaks=("decode.draft", "decode.search"))


@dataclass(frozen=True, kw_only=True)
class First(DrafterKnob):
    """`second` is not asked where `first` promises `enough`; three drafters are a First within a First."""

    card: ClassVar[Card] = CARD

    first: DrafterKnob = part("lookup")
    second: DrafterKnob = part("recycle")
    enough: Annotated[float, Span(0.0, 255.0, "tokens")] = 1.0

    def open(self, rows: int, vocab: int) -> Drafter:
        return _First(self, rows, vocab)


class _First(Parts):
    def __init__(self, knob: First, rows: int, vocab: int) -> None:
        super().__init__((knob.first, knob.second), rows, vocab)
        self.enough = knob.enough

    def propose(self, row: int, ids: Sequence[int], budget: int, ahead: Sequence[int] = ()) -> Draft:
        one = self.ask(0, row, ids, budget, ahead)
        if one.tokens and expected(one) >= self.enough:
            return one
        two = self.ask(1, row, ids, budget, ahead)
        return two if two.tokens else one
