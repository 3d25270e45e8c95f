"""EAGLE: one decoder layer continues the model's last hidden states, and the model's own head reads tokens off them.

Section 4.1: the layer reads pairs of a state and the token that came after it, f(E(x_{i+1}), h_i) -> h_{i+1}: the token
resolves what the state leaves open. Its own states feed it on drafted tokens. The tree is EAGLE-2's: at each level the
likeliest nodes by the product of their probabilities grow on; reranking is the loop's, by measured costs.

What differs from the paper: the layer is trained on its own continuations by what they say, as EAGLE-3 is, not to match
states; attention falls with distance (ALiBi) in place of rotary positions; norms have no gains; the model writes the
training text itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from steno.core import Card, Span

from ..adapter import Adapter
from ..base import Draft, Drafter, Floats, Ints, Request, Seen
from ._layer import Branches, Layer, Text
from ._trained import Heads, TrainedKnob, grow

CARD = Card(
    paper="EAGLE: Speculative Sampling Requires Rethinking Feature Uncertainty",
    keeps="bits",
    breaks=("decode.draft", "decode.search"),
    backends=("hf", "native"),
    caps=("hidden",),
)


@dataclass(frozen=True, kw_only=True)
class Eagle(TrainedKnob):
    """`fan` children per node, of which the `beam` likeliest per level grow on, `depth` levels deep."""

    card: ClassVar[Card] = CARD

    adapter: str = ""
    depth: Annotated[int, Span(1, 16, "tokens")] = 4
    fan: Annotated[int, Span(1, 16, "children")] = 2
    beam: Annotated[int, Span(1, 64, "nodes")] = 2

    def open(self, rows: int, vocab: int) -> Drafter:
        return _Eagle(self, self.load(), rows)


class _Eagle(Heads):
    """`pairs[row]`: states and the tokens after them that no draft has needed yet; `prompt[row]`: what is not read."""

    prompts = True

    def __init__(self, knob: Eagle, adapter: Adapter, rows: int) -> None:
        super().__init__(adapter, rows)
        self.knob = knob
        self.layer = Layer(self.weights)
        self.text = [Text() for _ in range(rows)]
        self.prompt: list[tuple[int, ...]] = [()] * rows
        self.pairs: list[list[tuple[Floats, Sequence[int]]]] = [[] for _ in range(rows)]

    def start(self, row: int, request: Request) -> None:
        self.text[row], self.prompt[row], self.pairs[row] = Text(), request.prompt, []

    def read(self, row: int, ids: Sequence[int], hidden: Mapping[int, Floats]) -> None:
        # Each state pairs with the token after it; the first token pairs with none.
        rest = self.prompt[row] = self.prompt[row][len(ids) :]
        self.pairs[row].append((hidden[self.hidden[0]].copy(), [*ids[1:], rest[0]]))

    def observe(self, row: int, seen: Seen) -> None:
        if seen.hidden is not None:
            self.pairs[row].append((seen.hidden[self.hidden[0]][list(seen.path)], seen.new))

    def finish(self, row: int, ids: Sequence[int]) -> None:
        self.text[row], self.pairs[row] = Text(), []

    def propose(self, row: int, ids: Sequence[int], budget: int, ahead: Sequence[int] = ()) -> Draft:
        text, layer, knob = self.text[row], self.layer, self.knob
        for states, tokens in self.pairs[row]:
            layer.extend(text, layer.join(states, self.session.embed(np.array(tokens, np.int32))))
        self.pairs[row] = []
        if text.last is None:
            return Draft()
        draft = Branches(text)

        def step(parents: Ints, tokens: Ints) -> Floats:
            if draft.states is None:
                draft.states = layer.after(text)
            else:
                layer.branch(draft, parents, self.session.embed(tokens))
            return self.session.head(draft.states)

        path = [ids[-1], *ahead]
        return grow(step, path, depth=knob.depth, fan=knob.fan, beam=knob.beam, most=budget, source="eagle")
