"""Prompt lookup: find the last few tokens earlier in the text, and draft what followed them there.

The most recent match wins, longer n-grams are tried first; a map from n-gram to the place after it makes a step O(1).
A match that runs into the end of the text repeats itself, as in LZ77: text of period k is drafted whole.
Public origin: github.com/apoorvumang/prompt-lookup-decoding, and the n-gram drafters of serving engines. Those take
the first match (transformers) or scan the text at every step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from steno.core import Card, Span
from steno.core.errors import KnobError

from ..base import Draft, Drafter, DrafterKnob, Request, Seen

CARD = Card(keeps="bits", breaks=("decode.draft", "decode.search"))


@dataclass(frozen=True, kw_only=True)
class Lookup(DrafterKnob):
    """Drafts up to `num_tokens` tokens after a match of `max_ngram` to `min_ngram` tokens; the loop keeps what pays."""

    card: ClassVar[Card] = CARD

    max_ngram: Annotated[int, Span(1, 16, "tokens")] = 5
    min_ngram: Annotated[int, Span(1, 16, "tokens")] = 1
    num_tokens: Annotated[int, Span(1, 255, "tokens")] = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_ngram > self.max_ngram:
            raise KnobError(
                f"{self.name}: min_ngram must not exceed max_ngram ({self.max_ngram}), got {self.min_ngram}. "
                f"Set it with --set {self.name}.min_ngram={self.max_ngram}"
            )

    def open(self, rows: int, vocab: int) -> Drafter:
        return _Lookup(self, rows)


class _Lookup:
    """Per row: `ends[n]` maps an n-gram to the place after its last occurrence that has a next token."""

    top = 0
    laws = False

    def __init__(self, knob: Lookup, rows: int) -> None:
        self.knob = knob
        self.sizes = range(knob.max_ngram, knob.min_ngram - 1, -1)
        # Longer matches are better ones; the loop learns from there how much.
        self.scores = {n: tuple((1 - 0.5 / n) ** (i + 1) for i in range(knob.num_tokens)) for n in self.sizes}
        self.ends: list[dict[int, dict[tuple[int, ...], int]]] = [{} for _ in range(rows)]
        self.known = [0] * rows

    def start(self, row: int, request: Request) -> None:
        ids = request.prompt
        self.ends[row] = {
            n: dict(zip(zip(*(ids[i:-1] for i in range(n)), strict=False), range(n, len(ids)), strict=False))
            for n in self.sizes
        }
        self.known[row] = len(ids) - 1

    def propose(self, row: int, ids: Sequence[int], budget: int, ahead: Sequence[int] = ()) -> Draft:
        ends = self.ends[row]
        for end in range(self.known[row] + 1, len(ids)):
            for n in self.sizes:
                if n <= end:
                    ends[n][tuple(ids[end - n : end])] = end
        self.known[row] = len(ids) - 1
        count = min(budget, self.knob.num_tokens)
        text = [*ids, *ahead] if ahead else ids
        for n in self.sizes:
            end = ends[n].get(tuple(text[-n:]))
            if end is not None:
                found = list(text[end : end + count])
                period = len(text) - end
                while len(found) < count:
                    found.append(found[len(found) - period])
                return Draft.chain(found, self.scores[n][:count], "lookup")
        return Draft()

    def observe(self, row: int, seen: Seen) -> None:
        pass

    def finish(self, row: int, ids: Sequence[int]) -> None:
        self.ends[row] = {}
