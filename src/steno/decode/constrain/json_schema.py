"""JSON Schema: the text is one JSON value that a schema allows, and nothing else.

llguidance gives the tokens that may come (its parser, our places: see `_guided`). A keyword that it would not hold is
an error that names it, never dropped; `ignore` says which ones not to hold. Words that assert nothing in JSON Schema
(annotations, unknown keywords) are listed in `notes`. What only one text can follow, such as the names of required
properties, is drafted: verification decides, so tokens are the same with and without.

What differs from JSON Schema: properties come in the order of the schema; a format is enforced, as a regular expression
(29 February exists in every year); values are written one way, so that 1.0 is no integer and only control characters
are written as \\uXXXX; keys of `additionalProperties` may repeat, and the last one counts.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, ClassVar

import llguidance

from steno.core import Card, Span
from steno.core.errors import KnobError

from ..base import Constraint, ConstraintKnob
from ._guided import LOOSE, checked, guided
from ._keywords import Refused, prepared, read

if TYPE_CHECKING:
    from steno.tokens import Words

CARD = Card(
    paper="Generating Structured Outputs from Language Models: Benchmark and Studies",
    task=True,
    breaks=("decode.constrain",),
    requires=("schema",),
)


@dataclass(frozen=True, kw_only=True)
class JsonSchema(ConstraintKnob):
    """`schema` is JSON text. `whitespace`: most blanks and line breaks at one place; `spans`: draft what is forced."""

    card: ClassVar[Card] = CARD

    schema: str = "{}"
    whitespace: Annotated[int, Span(0, 64, "characters")] = 1
    spans: bool = True
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        _grammar(self.name, self.schema, self.whitespace, self.ignore)

    @property
    def drafts(self) -> bool:
        return self.spans

    @property
    def notes(self) -> tuple[str, ...]:
        """Words of the schema that assert nothing, and so are not held."""
        return _grammar(self.name, self.schema, self.whitespace, self.ignore)[1]

    def open(self, words: "Words") -> Constraint:
        return guided(self.name, _grammar(self.name, self.schema, self.whitespace, self.ignore)[0], words)


@lru_cache(maxsize=256)
def _grammar(who: str, text: str, whitespace: int, ignore: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """(the grammar, words that say nothing)."""
    try:
        schema, notes = prepared(read(text), frozenset(ignore))
    except Refused as error:
        raise KnobError(f"{who}: schema must be a JSON Schema that can be held in full; {error}.") from None
    blanks = rf"[\x20\x0A\x0D\x09]{{1,{whitespace}}}"
    options = {"whitespace_pattern": blanks} if whitespace else {"whitespace_flexible": False}
    whole = json.dumps({**schema, "x-guidance": options})
    checked(who, "schema", lambda: llguidance.LLMatcher.grammar_from_json_schema(whole))
    return f"{LOOSE}start: %json {whole}\n", tuple(notes)
