"""Conditional beam search: beams ranked by the probability of the text and of an attribute that it is to have.

Chapter on attribute-conditional search of the thesis: the mode of a model is often degenerate (empty, or in circles),
while the mode *given* that the text has an attribute a is not. Beams x are ranked by

    log p(x) + `weight` log p(a | x),

where p(a | x) is a scorer's estimate for the beginning x; the most probable `pool` extensions of every beam are judged.
A `weight` of 0 is beam search. Whole texts are ranked by the same sum, the first term over length to the power
`length_power`.

What differs from the thesis: any scorer stands for its trained classifier of hidden states. Its other method, gradient
steps on the hidden states of the past, is not here: sessions do not differentiate.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from steno.core import Card, Span

from ..base import Ground, Hypothesis, ScorerKnob, SearchKnob
from ._parts import Text, best, scorer

CARD = Card(
    paper="Making the Most of your Model: Methods for Finetuning and Applying Pretrained Transformers",
    keeps="near",
    breaks=("decode.search", "decode.draft", "decode.accept"),
    caps=("fork",),
)

LEAST = 1e-6
"""A score of 0 counts as this: a scorer is sure of nothing, and log 0 would make all such beams equal."""


@dataclass(frozen=True, kw_only=True)
class ConditionalBeam(SearchKnob):
    """One forward a step for all beams; the scorer is asked `beams` times `pool` times a step."""

    card: ClassVar[Card] = CARD
    points = (
        {"attribute": {"name": "decode.score.syntax"}, "weight": 0.0},
        {"attribute": {"name": "decode.score.syntax"}},
        {"attribute": {"name": "decode.score.syntax"}, "weight": 10.0},
    )

    attribute: ScorerKnob = scorer("likelihood")
    weight: Annotated[float, Span(0.0, 1000.0)] = 1.0
    beams: Annotated[int, Span(1, 256, "beams")] = 4
    pool: Annotated[int, Span(1, 256, "tokens")] = 8
    length_power: Annotated[float, Span(0.0, 4.0)] = 1.0

    def search(self, ground: Ground) -> list[Hypothesis]:
        session, texts = ground.open(), [Text()]
        ended: list[Text] = []
        for _ in range(ground.limit):
            laws = ground.advance(session, [text.tokens for text in texts])
            grown: list[tuple[float, int, Text]] = []
            for row, (text, law) in enumerate(zip(texts, laws, strict=True)):
                for token in best(law, self.pool):
                    longer = text.grown(token, float(law[token]))
                    grown.append((sum(longer.logs) + self._worth(longer, ground), row, longer))
            kept: list[tuple[int, Text]] = []
            for _, row, text in sorted(grown, key=lambda item: -item[0]):
                if len(kept) == self.beams:
                    break
                if text.tokens[-1] in ground.ends:
                    ended.append(text)
                else:
                    kept.append((row, text))
            texts = [text for _, text in kept] if len(ended) < self.beams else []
            if not texts:
                break
            session = session.fork([row for row, _ in kept])
        worth = {
            text: sum(text.logs) / len(text.logs) ** self.length_power + self._worth(text, ground)
            for text in (*ended, *texts)
        }
        ranked = sorted(worth.items(), key=lambda item: -item[1])
        return [Hypothesis(text.tokens, score) for text, score in ranked]

    def _worth(self, text: Text, ground: Ground) -> float:
        if not self.weight:
            return 0.0
        return self.weight * math.log(max(self.attribute.score(text.candidate(ground)), LEAST))
