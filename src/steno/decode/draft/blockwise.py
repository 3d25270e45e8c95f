"""Blockwise parallel decoding: heads guess the next tokens, the model verifies them in the step that guesses again.

Sections 3 and 4: predict, verify, accept; scoring and predicting share one forward, so a step that accepts k tokens
costs what a step of plain decoding does. Section 6: head k is a feed-forward layer with a residual connection between
the last hidden state and the model's output projection. The block is a single path: what head k likes best. It is
accepted exactly, as the plan's acceptor would choose; the paper's top-k and distance criteria change the output.

What differs from the paper: the model stays frozen (its first of three ways to train) and writes the training text
itself, as its distillation does; each head has a feed-forward layer of its own in place of one shared wide one, the
same arithmetic where the shared one is k times as wide.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np

from steno.core import Card

from ..adapter import Adapter
from ..base import Draft, Drafter
from ._trained import Heads, TrainedKnob

CARD = Card(
    paper="Blockwise Parallel Decoding for Deep Autoregressive Models",
    keeps="bits",
    breaks=("decode.draft", "decode.search"),
    backends=("hf", "native"),
    caps=("hidden",),
)


@dataclass(frozen=True, kw_only=True)
class Blockwise(TrainedKnob):
    """As many tokens as the adapter has heads; the loop drafts fewer where that pays."""

    card: ClassVar[Card] = CARD

    adapter: str = ""

    def open(self, rows: int, vocab: int) -> Drafter:
        return _Blockwise(self.load(), rows)


class _Blockwise(Heads):
    """`rise` [K * F, M] is the first layer of all heads: one product serves them. `fall` [K, M, F]."""

    def __init__(self, adapter: Adapter, rows: int) -> None:
        super().__init__(adapter, rows)
        self.heads, self.inner, width = self.weights["rise"].shape
        self.rise = self.weights["rise"].reshape(self.heads * self.inner, width)
        self.fall = self.weights["fall"]

    def propose(self, row: int, ids: Sequence[int], budget: int, ahead: Sequence[int] = ()) -> Draft:
        state = self.state[row]
        count = min(self.heads - len(ahead), budget)
        if state is None or count < 1:
            return Draft()
        inner = np.maximum(self.rise @ state, 0).reshape(self.heads, self.inner, 1)
        # What is supposed to come takes the first places, and with them the first heads.
        mine = slice(len(ahead), len(ahead) + count)
        states = state + (self.fall[mine] @ inner[mine])[:, :, 0]
        guesses = cast(list[int], self.session.head(states).argmax(1).tolist())
        return Draft.chain(guesses, source="blockwise")
