"""Hydra: draft heads that read what the heads before them drafted, so that a path is a text and not a grid of guesses.

Section 3: head i sees the last hidden state and the embeddings of the tokens drafted so far,
p_i = softmax(W MLP_i([h; E(x_1); ...; E(x_i)])), x_1 being the token the model itself chose. A level of the tree is one
product for all its nodes.

What differs from the paper: the MLP has one hidden layer with a residual connection from h, before the model's own
output projection (Hydra++ has more layers and a prefix attention layer); the model writes the training text itself;
levels keep the likeliest `beam` nodes in place of a tree fixed beforehand, and the loop cuts it to what pays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from steno.core import Card, Span

from ..adapter import Adapter
from ..base import Draft, Drafter, Floats, Ints
from ._trained import Heads, TrainedKnob, grow, level, silu, single

CARD = Card(
    paper="Hydra: Sequentially-Dependent Draft Heads for Medusa Decoding",
    keeps="bits",
    breaks=("decode.draft", "decode.search"),
    backends=("hf", "native"),
    caps=("hidden",),
)


@dataclass(frozen=True, kw_only=True)
class Hydra(TrainedKnob):
    """`fan` children per node, of which the `beam` likeliest per level grow on."""

    card: ClassVar[Card] = CARD

    adapter: str = ""
    fan: Annotated[int, Span(1, 16, "children")] = 2
    beam: Annotated[int, Span(1, 64, "nodes")] = 2

    def open(self, rows: int, vocab: int) -> Drafter:
        return _Hydra(self, self.load(), rows)


class _Hydra(Heads):
    """`paths` [n, d, M] holds the embeddings along the paths of the level that was run last."""

    def __init__(self, knob: Hydra, adapter: Adapter, rows: int) -> None:
        super().__init__(adapter, rows)
        self.knob = knob
        weights = self.weights
        self.depth = len(weights["outs"])
        self.outs = weights["outs"]
        self.reads_state = weights["reads_state"]
        self.reads_tokens = [weights[f"reads_tokens.{d}"] for d in range(self.depth)]
        self.paths: Floats = np.zeros((1, 0, self.outs.shape[1]), np.float32)

    def propose(self, row: int, ids: Sequence[int], budget: int, ahead: Sequence[int] = ()) -> Draft:
        state = self.state[row]
        depth = self.depth - len(ahead)
        if state is None or depth < 1:
            return Draft()
        self.paths = self.paths[:1, :0]

        def step(parents: Ints, tokens: Ints) -> Floats:
            return self.session.head(self.continued(state, parents, tokens))

        knob = self.knob
        path = [ids[-1], *ahead]
        return grow(step, path, depth=depth, fan=knob.fan, beam=knob.beam, most=budget, source="hydra")

    def continued(self, state: Floats, parents: Ints, tokens: Ints) -> Floats:
        """States [n, M] behind `tokens`, which follow the nodes `parents` of the last level."""
        fresh = level(self.session.embed(tokens))
        self.paths = np.concatenate([self.paths[parents], fresh[:, None]], 1)
        d = self.paths.shape[1] - 1
        inner = self.reads_state[d] @ state + self.paths.reshape(len(tokens), -1) @ self.reads_tokens[d].T
        return single(state + silu(inner) @ self.outs[d].T)
