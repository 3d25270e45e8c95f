"""USCD: where the model is unsure, subtract what it would say without the prompt's examples.

The lame prompt is the prompt without its input-output examples. At a step where the standard prompt's law p is sure of
itself, its best token is taken. Elsewhere, among the tokens v with p(v) >= `alpha` max p, the one that maximises

    (1 + eta) log p(v) - eta log p_lame(v).

Uncertainty is the standard deviation of p over the vocabulary, from 0 (flat) to 1 (one token) times sqrt(V): the step
is sure at `sure` or more. Both prompts are rows of one session; the lame one is run when it is asked, and then catches
up with the text in one forward.

What differs from the paper: the values of `alpha`, `eta` and `sure`, and scaling the deviation by the vocabulary, are
ours. Examples are doctest lines with what they print, and assert statements; the tokens that lie wholly within such
lines are left out and the others stay as they were. Without examples, or without ids to text, it is greedy decoding.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import numpy as np

from steno.core import Card, Session, Span

from .._law import Doubles
from .._nodes import common
from .._text import Decoder, borders
from ..base import Ground, Hypothesis, SearchKnob

CARD = Card(
    paper="USCD: Improving Code Generation of LLMs by Uncertainty-Aware Selective Contrastive Decoding",
    keeps="near",
    breaks=("decode.search", "decode.draft", "decode.accept"),
    caps=("fork", "crop"),
)


@dataclass(frozen=True, kw_only=True)
class Uscd(SearchKnob):
    """`eta` of 0, or `sure` of 0, is greedy decoding."""

    card: ClassVar[Card] = CARD
    points = ({"sure": 0.0}, {}, {"sure": 1.0})

    alpha: Annotated[float, Span(0.0, 1.0)] = 0.1
    eta: Annotated[float, Span(0.0, 10.0)] = 0.5
    sure: Annotated[float, Span(0.0, 1.0)] = 0.7

    def search(self, ground: Ground) -> list[Hypothesis]:
        prompt = ground.request.prompt
        lame = without_examples(prompt, ground.text) if ground.text is not None and self.eta else prompt
        session = _rows(ground, lame)
        text: list[int] = []
        total = 0.0
        while not text or (text[-1] not in ground.ends and len(text) < ground.limit):
            past = [*prompt, *text]
            # A past that a row holds already asks nothing of it: the lame row waits.
            logits = ground.reach(session, [past, (*lame, *text)[: session.lengths[1]]])[0]
            assert logits is not None
            law = ground.law(logits, past)
            token = int(law.argmax())
            if lame != prompt and sureness(law) < self.sure:
                other = ground.reach(session, [past, [*lame, *text]])[1]
                assert other is not None
                token = self._contrast(law, other.astype(np.float64))
            text.append(token)
            total += float(law[token])
        return [Hypothesis(tuple(text), total / len(text))]

    def _contrast(self, law: Doubles, other: Doubles) -> int:
        """The best token under the contrast. The lame side is as the model says it, so no shaper makes it infinite."""
        worth = (1 + self.eta) * law - self.eta * (other - other.max())
        edge = law.max() + (math.log(self.alpha) if self.alpha else -np.inf)
        return int(np.where((law >= edge) & (law > -np.inf), worth, -np.inf).argmax())


def sureness(law: Doubles) -> float:
    """The standard deviation of the probabilities of log-probabilities [V], times sqrt(V): 0 for a flat law, near 1
    for a law of one token.
    """
    return float(np.exp(law).std() * math.sqrt(len(law)))


def _rows(ground: Ground, lame: Sequence[int]) -> Session:
    """A session of two rows: the prompt less its last token, and what the lame prompt begins alike."""
    session = ground.open().fork([0, 0])
    held = session.lengths[0]
    session.crop([held, min(common(ground.request.prompt, lame), len(lame) - 1)])
    return session


def without_examples(prompt: Sequence[int], text: Decoder) -> tuple[int, ...]:
    """The prompt less the tokens that lie wholly within its examples; at least one token stays."""
    spans = list(_examples(text(prompt)))
    places = pairwise(borders(text, prompt))
    inside = [any(start <= low and high <= end for start, end in spans) for low, high in places]
    kept = tuple(token for token, out in zip(prompt, inside, strict=True) if not out)
    return kept or tuple(prompt[:1])


def _examples(text: str) -> Iterator[tuple[int, int]]:
    """(start, end) of every line that shows an example."""
    place, shown = 0, False
    for line in text.splitlines(keepends=True):
        bare = line.strip()
        if bare.startswith((">>>", "assert ")):
            shown = bare.startswith(">>>")
            yield place, place + len(line)
        elif shown and bare and not bare.startswith(('"""', "'''")):
            # What a doctest prints goes on to the next blank line.
            yield place, place + len(line)
        else:
            shown = False
        place += len(line)
