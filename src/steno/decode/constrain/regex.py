"""Regular expression: the whole text matches, by llguidance.

The dialect is that of Rust's regex crate: no look-around, no back-references; `.` is any character but a line break.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import llguidance

from steno.core import Card

from ..base import Constraint, ConstraintKnob
from ._guided import LOOSE, checked, guided

if TYPE_CHECKING:
    from steno.tokens import Words

CARD = Card(task=True, breaks=("decode.constrain",), requires=("schema",))


@dataclass(frozen=True, kw_only=True)
class Regex(ConstraintKnob):
    """`spans`: draft what is forced."""

    card: ClassVar[Card] = CARD

    pattern: str = ".*"
    spans: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _grammar(self.name, self.pattern)

    @property
    def drafts(self) -> bool:
        return self.spans

    def open(self, words: "Words") -> Constraint:
        return guided(self.name, _grammar(self.name, self.pattern), words)


@lru_cache(maxsize=256)
def _grammar(who: str, pattern: str) -> str:
    checked(who, "pattern", lambda: llguidance.LLMatcher.grammar_from_regex(pattern))
    return f"{LOOSE}start: /{llguidance.regex_to_lark(pattern, use_ascii='')}/\n"
