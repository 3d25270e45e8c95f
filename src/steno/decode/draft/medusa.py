"""Medusa: extra heads on the last hidden state each guess one more token ahead; their guesses form a tree.

Section 2.1: head k is a residual block and an output projection of its own, p_k = softmax(W_o(h + SiLU(W_k h))),
trained on the frozen model (Medusa-1). Head k guesses the token k places behind the pending one, whatever came in
between, so the guesses are a grid: every guess of a depth may follow every guess of the depth above.

What differs from the paper: a head's projection is the model's own behind an M x M matrix that starts as the identity,
which keeps an adapter small at any vocabulary; the model writes the training text itself, greedily; the tree is not a
fixed one but the likeliest nodes at each step, and the loop cuts it to what pays; tokens are accepted only as the
plan's acceptor would choose them, never by the "typical acceptance" that changes the output.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from steno.core import Card, Span

from ..adapter import Adapter
from ..base import Draft, Drafter
from ._trained import Heads, TrainedKnob, best, grid, silu, single

CARD = Card(
    paper="Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads",
    keeps="bits",
    breaks=("decode.draft", "decode.search"),
    backends=("hf", "native"),
    caps=("hidden",),
)


@dataclass(frozen=True, kw_only=True)
class Medusa(TrainedKnob):
    """`fan` guesses per head, of whose grid the `num_tokens` likeliest nodes are drafted."""

    card: ClassVar[Card] = CARD

    adapter: str = ""
    fan: Annotated[int, Span(1, 16, "guesses")] = 3
    num_tokens: Annotated[int, Span(1, 255, "tokens")] = 16

    def open(self, rows: int, vocab: int) -> Drafter:
        return _Medusa(self, self.load(), rows)


class _Medusa(Heads):
    """`blocks` [K * M, M] are the residual matrices of all heads: one product serves them. `outs` [K, M, M]."""

    def __init__(self, knob: Medusa, adapter: Adapter, rows: int) -> None:
        super().__init__(adapter, rows)
        self.knob = knob
        heads, width, _ = self.weights["blocks"].shape
        self.heads, self.width = heads, width
        self.blocks = self.weights["blocks"].reshape(heads * width, width)
        self.outs = self.weights["outs"]

    def propose(self, row: int, ids: Sequence[int], budget: int, ahead: Sequence[int] = ()) -> Draft:
        state = self.state[row]
        if state is None or len(ahead) >= self.heads:
            return Draft()
        inner = state + silu(self.blocks @ state).reshape(self.heads, self.width)
        states = single(self.outs @ inner[:, :, None])[:, :, 0]
        # What is supposed to come takes the first places, and with them the first heads.
        guesses, probs = best(self.session.head(states[len(ahead) :]), self.knob.fan)
        return grid(guesses, probs, min(budget, self.knob.num_tokens), "medusa")
