"""Lookahead decoding: Jacobi trajectories collect n-grams, and n-grams that fit are verified in the same forward.

A window of `window` columns holds the last `ngram` - 1 Jacobi iterations of as many future places (section 3 of the
paper). One forward yields the next iteration; a column read through the iterations, with the new token, is an n-gram of
the model's own, which enters a pool by its first token. The pool's n-grams that begin with the pending token are
verified beside the window. A step that accepts h tokens moves the window h columns on.

The paper's attention mask is a tree: iteration 0 is a chain behind the pending token, and each column hangs off its
token of iteration 0. So the window is a draft like any other: its nodes share those of the n-grams, may themselves be
accepted, and run on every backend with trees.

What differs from the paper: places that enter the window hold tokens from the text instead of random ones.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from steno.core import ROOT, Card, Span

from ..base import Draft, Drafter, DrafterKnob, Request, Seen
from ._guesses import filler
from ._trie import Trie

CARD = Card(
    paper="Break the Sequential Dependency of LLM Inference Using Lookahead Decoding",
    keeps="bits",
    breaks=("decode.draft", "decode.search"),
)

Levels = list[list[int]]
"""levels[l][c] is the guess, in iteration l, at the place c + l behind the pending one; levels[0][0] is pending."""


@dataclass(frozen=True, kw_only=True)
class Lookahead(DrafterKnob):
    """N, W and G of the paper. The window runs in every step that drafts, of the pool what pays."""

    card: ClassVar[Card] = CARD

    ngram: Annotated[int, Span(2, 8, "tokens")] = 5
    window: Annotated[int, Span(1, 30, "tokens")] = 7
    guesses: Annotated[int, Span(1, 64, "n-grams")] = 7

    def open(self, rows: int, vocab: int) -> Drafter:
        return _Lookahead(self, rows)


class _Lookahead:
    """Per row the window, and `pool[token]`: the last n-grams that began with it, less the token itself."""

    top = 1
    laws = False

    def __init__(self, knob: Lookahead, rows: int) -> None:
        self.knob = knob
        self.levels: list[Levels] = [[] for _ in range(rows)]
        self.pool: list[dict[int, OrderedDict[tuple[int, ...], None]]] = [{} for _ in range(rows)]

    def start(self, row: int, request: Request) -> None:
        self.levels[row] = [[] for _ in range(self.knob.ngram - 1)]
        self.pool[row] = {}

    def propose(self, row: int, ids: Sequence[int], budget: int, ahead: Sequence[int] = ()) -> Draft:
        trie = Trie()
        if not ahead:
            self._fill(self.levels[row], ids)
            place(trie, self.levels[row])
        kept = min(len(trie.tokens), budget)
        last = ahead[-1] if ahead else ids[-1]
        for rank, guess in enumerate(reversed(self.pool[row].get(last, ()))):
            node = ROOT
            for depth, token in enumerate(guess):
                node = trie.add(node, token, 0.6 ** (depth + 1) / (rank + 1))
        draft = trie.draft("lookahead", kept)
        # Parents come first, so any beginning is a tree.
        return Draft(draft.tokens[:budget], draft.parents[:budget], draft.scores[:budget], None, "lookahead", kept)

    def observe(self, row: int, seen: Seen) -> None:
        levels, gained = self.levels[row], len(seen.new)
        if seen.top is None or not levels or not levels[0]:
            return
        fresh = said(levels, seen)
        if fresh[0] is None:
            # The window did not run: its guesses stay at their places.
            self.levels[row] = [level[gained:] for level in levels]
            return
        known = [token for token in fresh if token is not None]
        for column, token in enumerate(known):
            self._collect(row, (*(level[column] for level in levels), token))
        self.levels[row] = [level[gained - 1 :] for level in [*levels[1:], known]]

    def finish(self, row: int, ids: Sequence[int]) -> None:
        self.levels[row] = []
        self.pool[row] = {}

    def _fill(self, levels: Levels, ids: Sequence[int]) -> None:
        for depth, level in enumerate(levels):
            while len(level) < self.knob.window:
                level.append(filler(ids, len(level) + depth))
        levels[0][0] = ids[-1]

    def _collect(self, row: int, ngram: tuple[int, ...]) -> None:
        held = self.pool[row].setdefault(ngram[0], OrderedDict())
        held[ngram[1:]] = None
        held.move_to_end(ngram[1:])
        if len(held) > self.knob.guesses:
            held.popitem(last=False)


def place(trie: Trie, levels: Levels) -> None:
    """The window as nodes: column c sees iteration 0 up to itself, and its own tokens of earlier iterations."""
    column = ROOT
    for c, token in enumerate(levels[0]):
        if c:
            column = trie.add(column, token, 0.3**c)
        node = column
        for depth, level in enumerate(levels[1:], c + 1):
            node = trie.add(node, level[c], 0.3**depth)


def said(levels: Levels, seen: Seen) -> list[int | None]:
    """Per column what the model said after its last iteration; None where that node did not run."""
    assert seen.top is not None
    nodes = {(parent, token): i for i, (parent, token) in enumerate(zip(seen.parents, seen.tokens, strict=True))}
    column: int | None = 0
    out: list[int | None] = []
    for c, token in enumerate(levels[0]):
        if c and column is not None:
            column = nodes.get((column, token))
        node = column
        for level in levels[1:]:
            node = None if node is None else nodes.get((node, level[c]))
        out.append(None if node is None else int(seen.top[node, 0]))
    return out
