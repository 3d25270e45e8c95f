"""PAC prediction sets: the greedy program, with holes where the model is unsure, so that what is left is to be trusted.

Section 4 of the paper. The set of all programs that fill the holes is the prediction. Of the sets of at most `holes`
expressions and statements that may be left out, the one with the fewest tokens is taken for which -log p of what is
left is at most `tau`. `tau` is what calibration is for: `measure.coverage` chooses it on examples, so that with
confidence 1 - delta the true program is in the set with probability 1 - epsilon.

What differs from the paper: an exact search on the syntax tree in place of an integer program; costs are those of
tokens; the tests of calibration run in a fixed sequence, which needs no monotony. Python only. Where no `holes` are
enough, where nothing parses, or without ids to text, all of the text is one hole; what is behind the last line that
parses is one always.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from steno.core import Card, Span

from .._holes import Spans, open_spans, program
from .._text import borders, unmarked
from ..base import Ground, Hypothesis, SearchKnob
from ._parts import Text, Walker

CARD = Card(
    paper="PAC Prediction Sets for Large Language Models of Code",
    keeps="near",
    breaks=("decode.search", "decode.draft", "decode.accept"),
    caps=("fork", "crop"),
)


@dataclass(frozen=True, kw_only=True)
class Pac(SearchKnob):
    """The text is greedy decoding's; `Hypothesis.holes` says what of it is open."""

    card: ClassVar[Card] = CARD

    tau: Annotated[float, Span(0.0, 1e6, "nats")] = 2.0
    holes: Annotated[int, Span(0, 16, "holes")] = 3

    def search(self, ground: Ground) -> list[Hypothesis]:
        walker, text = Walker(ground), Text()
        while not text.ended(ground):
            law = walker.law(text.tokens)
            text = text.grown(int(law.argmax()), float(law.max()))
        return [Hypothesis(text.tokens, sum(text.logs) / len(text.logs), self._holes(ground, text))]

    def _holes(self, ground: Ground, text: Text) -> Spans:
        if ground.text is None:
            return ((0, len(text.tokens)),)
        given = len(unmarked(ground.text, ground.request.prompt, ground.ends))
        words = unmarked(ground.text, (*ground.request.prompt, *text.tokens), ground.ends)
        code = program(ground.text(words), borders(ground.text, words), given)
        # An end token is no part of the program, and so no part of a hole.
        return open_spans(code, text.logs[: len(words) - given], self.tau, self.holes)
