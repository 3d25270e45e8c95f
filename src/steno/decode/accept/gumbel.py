"""Seed-exact sampling: the token after a node is argmax(logits + G), the noise G keyed by seed, request and position.

The Gumbel-max trick draws from the softmax law, and the noise depends on nothing a draft can change: a draft token is
accepted where it equals the draw, so the output is, token for token, that of plain sampling with the same seed, for
any drafter, batch and order of requests. Trees need no further rule, because there is one draw per node.
"""

from dataclasses import dataclass
from typing import ClassVar

from steno.core import Card

from .._noise import draw
from .._walk import follow
from ..base import AcceptorKnob, Draft, View

CARD = Card(keeps="tokens", breaks=("decode.accept", "decode.search"))


@dataclass(frozen=True, kw_only=True)
class Gumbel(AcceptorKnob):
    """Needs no draft probabilities. Accepts a drafted token with the model's own probability of it."""

    card: ClassVar[Card] = CARD

    def verify(self, draft: Draft, view: View) -> tuple[list[int], int]:
        def choose(node: int) -> int:
            return draw(view.key(node, "token"), view.logits(node))

        return follow(draft, choose)
