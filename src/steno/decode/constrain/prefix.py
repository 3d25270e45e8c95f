"""Prefix: the text begins with certain bytes, and goes on freely, if need be for a few lines. What token healing needs.

A prompt that ends within a word leaves tokens that no text was ever encoded with: after `retu` a model knows little of
`rn`. Healing takes the last tokens off the prompt and asks for their bytes back: a token may come where it begins what
is left of them, or goes past it, as `return` does.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from steno.core import Card, Span

from ..base import Constraint, ConstraintKnob
from ._texts import Free, Texts

if TYPE_CHECKING:
    from steno.tokens import Words

CARD = Card(task=True, breaks=("decode.constrain",))


@dataclass(frozen=True, kw_only=True)
class Prefix(ConstraintKnob):
    """An empty `text` asks for nothing. After `lines` lines that are not blank the text ends; 0: where it likes."""

    card: ClassVar[Card] = CARD
    closes: ClassVar[bool] = False

    text: str = ""
    lines: Annotated[int, Span(0, 10_000, "lines")] = 0

    def open(self, words: "Words") -> Constraint:
        free = Free(words, self.lines if words.ends else 0)
        return Texts(self.name, words, (self.text.encode("utf-8"),), free) if self.text else free
