"""ADED: a tri-gram table that follows the model, searched for drafts by Monte Carlo tree search.

The table holds P(c | a, b), at most eight successors per pair of tokens. Drafts are the nodes that simulations visit
from the last two tokens; a simulation descends by the paper's bound,

    Q + P sqrt(N) / (1 + n) (1 + log((N + c + 1) / c)),

to a node it has not seen. After each step the model's law at every node that ran is blended into the table (section 3).

What differs from the paper: the table starts empty instead of from a corpus, and persists across the requests of a
loop; the model's law is taken over its eight best tokens; a node's value Q is the mean probability, by the table, of
the paths that simulations ended on below it. Constants not given there are those of AlphaZero's family.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from steno.core import ROOT, Card, Span

from .._law import softmax
from ..base import Draft, Drafter, DrafterKnob, Request, Seen
from ._trie import Trie

CARD = Card(
    paper="Adaptive Draft-Verification for Efficient Large Language Model Decoding",
    keeps="bits",
    breaks=("decode.draft", "decode.search"),
)

FAN = 8
BASE = 19652.0

Law = dict[int, float]
"""Successors, the best first."""


@dataclass(frozen=True, kw_only=True)
class Aded(DrafterKnob):
    """`explore` scales the bound's second term; `rate` is what the newest law weighs in the table."""

    card: ClassVar[Card] = CARD

    simulations: Annotated[int, Span(1, 1024)] = 32
    depth: Annotated[int, Span(1, 16, "tokens")] = 6
    explore: Annotated[float, Span(0.0, 16.0)] = 1.0
    rate: Annotated[float, Span(0.01, 1.0)] = 0.5

    def open(self, rows: int, vocab: int) -> Drafter:
        return _Aded(self, rows, vocab)


class _Aded:
    """One table for all rows; `before[row]` is the token before the pending one."""

    laws = False

    def __init__(self, knob: Aded, rows: int, vocab: int) -> None:
        self.knob = knob
        self.top = min(FAN, vocab)
        self.table: dict[tuple[int, int], Law] = {}
        self.before = [-1] * rows

    def start(self, row: int, request: Request) -> None:
        self.before[row] = request.prompt[-2] if len(request.prompt) > 1 else -1

    def propose(self, row: int, ids: Sequence[int], budget: int, ahead: Sequence[int] = ()) -> Draft:
        last = [*ids[-2:], *ahead][-2:]
        if len(last) < 2:
            last = [-1, *last]
        if (last[0], last[1]) not in self.table:
            return Draft()
        search = Search(self.table, self.knob, last)
        for _ in range(self.knob.simulations):
            search.simulate()
        draft = search.trie.draft("aded")
        return Draft(draft.tokens[:budget], draft.parents[:budget], draft.scores[:budget], None, "aded")

    def observe(self, row: int, seen: Seen) -> None:
        if seen.top is not None and seen.logits is not None:
            top, logits = seen.top, seen.logits
            for node, (token, parent) in enumerate(zip(seen.tokens, seen.parents, strict=True)):
                pair = (seen.tokens[parent] if parent >= 0 else self.before[row], token)
                best = [int(i) for i in top[node]]
                law = dict(zip(best, softmax(logits[node]).tolist(), strict=True))
                self.table[pair] = blend(self.table.get(pair), law, self.knob.rate)
        self.before[row] = seen.tokens[seen.path[-1]]

    def finish(self, row: int, ids: Sequence[int]) -> None:
        pass


class Search:
    """One tree search; its nodes are the draft's."""

    def __init__(self, table: dict[tuple[int, int], Law], knob: Aded, last: Sequence[int]) -> None:
        self.table, self.knob, self.last = table, knob, list(last)
        self.trie = Trie()
        self.visits: dict[int, int] = {ROOT: 0}
        self.total: dict[int, float] = {ROOT: 0.0}
        self.children: dict[int, dict[int, int]] = {}

    def simulate(self) -> None:
        """Descend to a new node, or to the end of what is known, and count its probability for all above."""
        node, prob, path = ROOT, 1.0, [ROOT]
        pair = self.last[0], self.last[1]
        while len(path) <= self.knob.depth and (law := self.table.get(pair)):
            known = self.children.setdefault(node, {})
            bounds = {t: self._bound(node, known.get(t), share) for t, share in law.items()}
            token = max(bounds, key=bounds.__getitem__)
            prob *= law[token]
            new = token not in known
            node = known[token] = self.trie.add(node, token, prob)
            path.append(node)
            pair = pair[1], token
            if new:
                break
        for node in path:
            self.visits[node] = self.visits.get(node, 0) + 1
            self.total[node] = self.total.get(node, 0.0) + prob

    def _bound(self, parent: int, child: int | None, prob: float) -> float:
        whole, own = self.visits[parent], 0 if child is None else self.visits[child]
        value = 0.0 if child is None else self.total[child] / own
        growth = 1.0 + math.log((whole + BASE + 1.0) / BASE)
        return value + self.knob.explore * prob * math.sqrt(whole) / (1 + own) * growth


def blend(old: Law | None, new: Law, rate: float) -> Law:
    """The mixture of two laws, its eight best tokens, normalised.

    >>> blend({1: 1.0}, {1: 0.5, 2: 0.5}, 0.5)
    {1: 0.75, 2: 0.25}
    """
    mixed = {t: rate * p for t, p in new.items()} if old else dict(new)
    for token, prob in (old or {}).items():
        mixed[token] = mixed.get(token, 0.0) + (1 - rate) * prob
    best = sorted(mixed.items(), key=lambda item: (-item[1], item[0]))[:FAN]
    whole = float(np.sum([prob for _, prob in best]))
    return {token: prob / whole for token, prob in best}
