"""Speculative sampling: accept a draft token with probability min(1, p/q), else draw from what is left of p.

Algorithm 2 of the paper (found at the same time by Leviathan et al., "Fast Inference from Transformers via Speculative
Decoding"). A token that was chosen and not sampled has q = 1 at itself: accepted with probability p(x), and on
rejection p loses x and is renormalised, which is the rule for several children of a node as well. Where children were
sampled, each is tried against its own law (see `Draft.laws`), and p loses that law.

What differs from the paper: trees; random numbers are keyed by position and never by call order; a coin equal to the
ratio rejects, so that a token of probability 0 cannot come out.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from steno.core import ROOT, Card

from .._law import Doubles, draw, softmax
from ..base import AcceptorKnob, Draft, View

CARD = Card(
    paper="Accelerating Large Language Model Decoding with Speculative Sampling",
    keeps="law",
    breaks=("decode.accept", "decode.search"),
)


@dataclass(frozen=True, kw_only=True)
class Residual(AcceptorKnob):
    """Without a draft: samples from p by inverse transform."""

    card: ClassVar[Card] = CARD

    def verify(self, draft: Draft, view: View) -> tuple[list[int], int]:
        children: dict[int, list[int]] = {}
        for i, parent in enumerate(draft.parents):
            children.setdefault(parent, []).append(i)
        path: list[int] = []
        node = ROOT
        while True:
            law = softmax(view.logits(node))
            for nth, child in enumerate(children.get(node, ())):
                coin = view.key(node, f"accept {nth}").uniform()
                if accepts(law, draft, child, coin):
                    path.append(child)
                    node = child
                    break
                law = remainder(law, draft, child)
            else:
                return path, draw(law, view.key(node, "token").uniform())


def accepts(law: Doubles, draft: Draft, child: int, coin: float) -> bool:
    """coin < p/q, strictly, and without the division."""
    token = draft.tokens[child]
    q = 1.0 if draft.laws is None else float(draft.laws[child, token])
    return bool(coin * q < law[token])


def remainder(law: Doubles, draft: Draft, child: int) -> Doubles:
    """The law of the token after `child` was rejected: max(p - q, 0), normalised; p itself where nothing is left."""
    if draft.laws is None:
        rest = law.copy()
        rest[draft.tokens[child]] = 0.0
    else:
        rest = np.maximum(law - draft.laws[child], 0.0)
    total = rest.sum()
    # p and q equal up to rounding: a rejection there is rounding itself.
    return rest / total if total > 0.0 else law
