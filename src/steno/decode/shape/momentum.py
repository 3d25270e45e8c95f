"""Momentum decoding: text as a walk on the graph of its own tokens, slowed down where it goes in circles.

Section 4 of the paper: of the `k` best tokens take the one with the largest p(v) - alpha f(r), where r is the length of
the repetition that v would complete, the longest end of the text with v that occurred before. A token that is new costs
nothing, so where the best one is new the choice is greedy. f rises as in the authors' code: 0, 1, 3, 4, 5, 6, and past
five tokens there is no way on.

The choice is deterministic, so what is left is a law with one token in it. Where every candidate is barred, the best
token stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Annotated, ClassVar

import numpy as np

from steno.core import Card, Span

from .._law import softmax
from ..base import Floats, ShaperKnob

CARD = Card(paper="Momentum Decoding: Open-ended Text Generation As Graph Exploration", task=True)

RESISTANCE = (0.0, 1.0, 3.0, 4.0, 5.0, 6.0)


@dataclass(frozen=True, kw_only=True)
class Momentum(ShaperKnob):
    """The prompt is part of the graph."""

    card: ClassVar[Card] = CARD

    k: Annotated[int, Span(1, 256, "tokens")] = 5
    alpha: Annotated[float, Span(0.0, 10.0)] = 0.2

    def shape(self, logits: Floats, past: Sequence[int]) -> Floats:
        law = softmax(logits)
        best = np.argsort(-law, kind="stable")[: self.k].tolist()
        lengths = {token: repetition(past, token) for token in best if law[token] > 0.0}
        free = [token for token, length in lengths.items() if length < len(RESISTANCE)]
        chosen = max(free, key=lambda t: law[t] - self.alpha * RESISTANCE[lengths[t]]) if free else best[0]
        only = np.full_like(logits, -np.inf)
        only[chosen] = 0.0
        return only


def repetition(past: Sequence[int], token: int) -> int:
    """Tokens of the longest end of `past` and `token` that occurred in `past`, counted up to six.

    >>> repetition([1, 2, 3, 1, 2], 3), repetition([1, 2], 1), repetition([1, 2], 3)
    (3, 1, 0)
    """
    most = len(RESISTANCE)
    longest = 0
    for place, seen in enumerate(past):
        if seen == token:
            before = zip(past[max(0, place - most) : place][::-1], past[: -most - 1 : -1], strict=False)
            longest = max(longest, 1 + sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], before)))
            if longest >= most:
                return most
    return longest
