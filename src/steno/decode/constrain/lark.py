"""Context-free grammar in Lark's notation, by llguidance.

The dialect is llguidance's: rules in lower case, terminals in upper case, `start` is the whole text. A JSON Schema
within a grammar (`%json`) is refused, because its keywords would not be checked: use `decode.constrain.json_schema`.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from steno.core import Card
from steno.core.errors import KnobError

from ..base import Constraint, ConstraintKnob
from ._guided import LOOSE, checked, guided

if TYPE_CHECKING:
    from steno.tokens import Words

CARD = Card(task=True, breaks=("decode.constrain",), requires=("schema",))


@dataclass(frozen=True, kw_only=True)
class Lark(ConstraintKnob):
    """`spans`: draft what is forced."""

    card: ClassVar[Card] = CARD

    grammar: str = "start: /.*/"
    spans: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _grammar(self.name, self.grammar)

    @property
    def drafts(self) -> bool:
        return self.spans

    def open(self, words: "Words") -> Constraint:
        return guided(self.name, _grammar(self.name, self.grammar), words)


@lru_cache(maxsize=256)
def _grammar(who: str, text: str) -> str:
    if "%json" in text:
        raise KnobError(f"{who}: grammar must not hold %json. Use decode.constrain.json_schema, which checks keywords.")
    return checked(who, "grammar", lambda: LOOSE + text)
