"""Token Recycling: the eight best successors of every token the model was last seen with, drafted as a fixed tree.

An adjacency table [V, 8] keeps, for each token, the best eight ids of the logits that last followed it, accepted or
not; section 3 fills a static tree of 80 nodes in 6 levels (8, 21, 25, 15, 8, 3) from it, child j of a token being its
j-th successor. The table persists across the requests of a loop.

What differs from the paper: the tree's shape follows from one falling weight per rank, not from measurements on one
model; tokens never seen have no successors instead of token 0; where a step holds a token twice, the deepest accepted
node decides its row, then shallower ones, then the rest in order, so that the table is the same on every device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from steno.core import ROOT, Card

from ..base import Draft, Drafter, DrafterKnob, Ints, Request, Seen

CARD = Card(
    paper="Turning Trash into Treasure: Accelerating Inference of Large Language Models with Token Recycling",
    keeps="bits",
    breaks=("decode.draft", "decode.search"),
)

FAN = 8
LEVELS = (8, 21, 25, 15, 8, 3)


@dataclass(frozen=True, kw_only=True)
class Recycle(DrafterKnob):
    """Needs no match in the text, so it drafts at every step; the loop cuts the tree to what pays."""

    card: ClassVar[Card] = CARD

    def open(self, rows: int, vocab: int) -> Drafter:
        return _Recycle(vocab)


class _Recycle:
    """One table for all rows. Row `vocab` stands for "nothing known": -1 leads to it, and it leads to -1."""

    def __init__(self, vocab: int) -> None:
        self.top = min(FAN, vocab)
        self.laws = False
        self.table: Ints = np.full((vocab + 1, FAN), -1, np.int32)
        self.parents, self.scores, self.levels = tree()

    def start(self, row: int, request: Request) -> None:
        pass

    def propose(self, row: int, ids: Sequence[int], budget: int, ahead: Sequence[int] = ()) -> Draft:
        level = self.table[ahead[-1] if ahead else ids[-1]]
        if level[0] < 0:
            return Draft()
        parts = [level]
        for parent, rank in self.levels:
            level = self.table[level[parent], rank]
            parts.append(level)
        tokens = np.concatenate(parts)
        size = min(len(tokens), budget)
        parents, scores = self.parents[:size], self.scores[:size]
        if tokens[:size].min() >= 0:
            return Draft(tuple(tokens[:size].tolist()), parents, scores, None, "recycle")
        place = {ROOT: ROOT}
        for i in range(size):
            if tokens[i] >= 0 and parents[i] in place:
                place[i] = len(place) - 1
        kept = list(place)[1:]
        return Draft(
            tuple([int(tokens[i]) for i in kept]),
            tuple([place[parents[i]] for i in kept]),
            tuple([scores[i] for i in kept]),
            None,
            "recycle",
        )

    def observe(self, row: int, seen: Seen) -> None:
        if seen.top is None:
            return
        accepted = set(seen.path)
        order = [*(i for i in range(len(seen.tokens)) if i not in accepted), *seen.path]
        last = {seen.tokens[i]: i for i in order}
        self.table[list(last), : self.top] = seen.top[list(last.values())]

    def finish(self, row: int, ids: Sequence[int]) -> None:
        pass


def tree() -> tuple[tuple[int, ...], tuple[float, ...], list[tuple[Ints, Ints]]]:
    """The static tree: parents, scores, and below the first level per level (index in the level above, rank)."""
    weight = [0.5 / (rank + 1) for rank in range(FAN)]
    parents: list[int] = [ROOT] * LEVELS[0]
    scores: list[float] = weight[: LEVELS[0]]
    levels: list[tuple[Ints, Ints]] = []
    above = range(LEVELS[0])
    for size in LEVELS[1:]:
        children = [(scores[node] * weight[rank], node, rank) for node in above for rank in range(FAN)]
        best = sorted(sorted(children, key=lambda c: -c[0])[:size], key=lambda c: c[1:])
        levels.append(
            (np.array([n - above[0] for _, n, _ in best], np.int32), np.array([r for *_, r in best], np.int32))
        )
        above = range(len(parents), len(parents) + size)
        parents += [node for _, node, _ in best]
        scores += [score for score, _, _ in best]
    return tuple(parents), tuple(scores), levels
