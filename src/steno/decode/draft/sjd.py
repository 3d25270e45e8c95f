"""Speculative Jacobi decoding: Jacobi's guesses are sampled, and accepted by the ratio of two iterations' laws.

Section 4 of the paper: the guess at a place is drawn from what the last forward said there, p(. | prefix, old guesses);
the next forward accepts it with probability min(1, new law / old law), else draws from what is left, and every guess
behind is drawn anew from the new laws. Under `decode.accept.residual` that is the paper's rule, and the model's law is
kept. Any other acceptor keeps its own promise.

What differs from the paper: a guess is drawn with the noise that is keyed to its place, the same noise by which
`decode.accept.gumbel` draws the token there. Old and new draw then agree wherever the laws nearly do, which makes the
method seed-exact as well. Places no forward has reached hold a token of the text, chosen and not drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from steno.core import ROOT, Card, Key, Span

from .._noise import draw
from ..base import Draft, Drafter, DrafterKnob, Floats, Request, Seen
from ._guesses import filler, moved, ran

CARD = Card(
    paper="Accelerating Auto-regressive Text-to-Image Generation with Training-free Speculative Jacobi Decoding",
    keeps="bits",
    breaks=("decode.draft", "decode.search"),
)

Guess = tuple[int, Floats]
"""A token and the law it was drawn from."""


@dataclass(frozen=True, kw_only=True)
class SpeculativeJacobi(DrafterKnob):
    """`window` guesses run in every step that drafts."""

    card: ClassVar[Card] = CARD

    window: Annotated[int, Span(1, 255, "tokens")] = 8

    def open(self, rows: int, vocab: int) -> Drafter:
        return _SpeculativeJacobi(self.window, rows, vocab)


class _SpeculativeJacobi:
    """`guesses[row]` stand after the pending token, which is the `length[row]`-th of the text."""

    top = 0
    laws = True

    def __init__(self, window: int, rows: int, vocab: int) -> None:
        self.window, self.vocab = window, vocab
        self.guesses: list[list[Guess]] = [[] for _ in range(rows)]
        self.requests: list[Request | None] = [None] * rows
        self.length = [0] * rows
        self.scores = tuple(0.5 ** (i + 1) for i in range(window))

    def start(self, row: int, request: Request) -> None:
        self.guesses[row] = []
        self.requests[row] = request
        self.length[row] = len(request.prompt)

    def propose(self, row: int, ids: Sequence[int], budget: int, ahead: Sequence[int] = ()) -> Draft:
        guesses = self.guesses[row]
        if not ahead:
            while len(guesses) < self.window:
                guesses.append(self._chosen(filler(ids, len(guesses))))
        shown = guesses[len(ahead) :][:budget]
        if not shown:
            return Draft()
        size = len(shown)
        laws = np.stack([law for _, law in shown])
        parents = tuple(range(ROOT, size - 1))
        return Draft(tuple([token for token, _ in shown]), parents, self.scores[:size], laws, "sjd")

    def observe(self, row: int, seen: Seen) -> None:
        request = self.requests[row]
        if seen.laws is None or request is None:
            return
        old = self.guesses[row]
        nodes = ran(seen, [token for token, _ in old])
        gained = len(seen.new)
        fresh: list[Guess] = []
        for depth in range(gained, len(nodes)):
            law = seen.laws[nodes[depth]]
            key = Key(request.seed, request.number, self.length[row] + depth, "token")
            fresh.append((drawn(law, key), law))
        self.guesses[row] = moved(old, fresh, len(nodes), gained)[: self.window]
        self.length[row] += gained

    def finish(self, row: int, ids: Sequence[int]) -> None:
        self.guesses[row] = []

    def _chosen(self, token: int) -> Guess:
        law = np.zeros(self.vocab, np.float32)
        law[token] = 1.0
        return token, law


def drawn(law: Floats, key: Key) -> int:
    """The token the keyed Gumbel noise draws from `law`; never one of mass 0."""
    with np.errstate(divide="ignore"):
        return draw(key, np.log(law))
