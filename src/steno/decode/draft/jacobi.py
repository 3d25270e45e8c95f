"""Jacobi decoding: guess the next tokens all at once, and let every forward correct all guesses in parallel.

Algorithm 1 of the paper with its guided stop: y_i <- argmax p(. | prefix, y_<i) for a window of guesses at a time. The
guesses that a step confirms are committed, at least one token a step; the others stay as corrected guesses, and new
ones enter at the window's end as tokens of the text. Confirming is the loop's greedy walk, so the text is greedy's.

What differs from the paper: the window slides instead of waiting for a block to converge.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

from steno.core import Card, Span

from ..base import Draft, Drafter, DrafterKnob, Request, Seen
from ._guesses import filler, moved, ran

CARD = Card(
    paper="Accelerating Transformer Inference for Translation via Parallel Decoding",
    keeps="bits",
    breaks=("decode.draft", "decode.search"),
)


@dataclass(frozen=True, kw_only=True)
class Jacobi(DrafterKnob):
    """`window` guesses run in every step that drafts: a guess that does not run is not corrected."""

    card: ClassVar[Card] = CARD

    window: Annotated[int, Span(1, 255, "tokens")] = 8

    def open(self, rows: int, vocab: int) -> Drafter:
        return _Jacobi(self.window, rows)


class _Jacobi:
    """`guesses[row]` stand after the pending token."""

    top = 1
    laws = False

    def __init__(self, window: int, rows: int) -> None:
        self.window = window
        self.guesses: list[list[int]] = [[] for _ in range(rows)]
        self.scores = tuple(0.5 ** (i + 1) for i in range(window))

    def start(self, row: int, request: Request) -> None:
        self.guesses[row] = []

    def propose(self, row: int, ids: Sequence[int], budget: int, ahead: Sequence[int] = ()) -> Draft:
        guesses = self.guesses[row]
        if ahead:
            # Guesses stand at places: what is supposed to come takes the first of them.
            return Draft.chain(guesses[len(ahead) :][:budget], self.scores[: len(guesses)], "jacobi")
        while len(guesses) < self.window:
            guesses.append(filler(ids, len(guesses)))
        count = min(budget, self.window)
        draft = Draft.chain(guesses[:count], self.scores[:count])
        return Draft(draft.tokens, draft.parents, draft.scores, None, "jacobi", count)

    def observe(self, row: int, seen: Seen) -> None:
        if seen.top is None:
            return
        guesses, gained = self.guesses[row], len(seen.new)
        nodes = ran(seen, guesses)
        best = cast(list[int], seen.top[nodes[gained:], 0].tolist())
        self.guesses[row] = moved(guesses, best, len(nodes), gained)[: self.window]

    def finish(self, row: int, ids: Sequence[int]) -> None:
        self.guesses[row] = []
