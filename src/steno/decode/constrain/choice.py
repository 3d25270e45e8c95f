"""Choice: the text is one of a few, word for word.

A token may come where what it writes begins the rest of some text. What all rests begin with is drafted.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from steno.core import Card
from steno.core.errors import KnobError

from ..base import Constraint, ConstraintKnob
from ._texts import Texts

if TYPE_CHECKING:
    from steno.tokens import Words

CARD = Card(task=True, breaks=("decode.constrain",))


@dataclass(frozen=True, kw_only=True)
class Choice(ConstraintKnob):
    """`texts` may begin with each other: the shorter one may end where it ends."""

    card: ClassVar[Card] = CARD

    texts: tuple[str, ...] = ("yes", "no")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(self.texts) or len(set(self.texts)) < max(len(self.texts), 1):
            raise KnobError(f"{self.name}: texts must be different texts, none of them empty, got {self.texts!r}.")

    def open(self, words: "Words") -> Constraint:
        return Texts(self.name, words, tuple([text.encode("utf-8") for text in self.texts]))
