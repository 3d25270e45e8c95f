"""Union: the drafts of two drafters merged into one tree, the most promising nodes of which stay.

Paths that begin alike share their nodes, so agreement costs nothing, and where the two disagree the model decides
between them in the same forward. A node keeps the better of its scores; within the budget of nodes the best scores
stay, and with them their ancestors, whose scores are never lower.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from steno.core import ROOT, Card, Span

from .._trim import keep, scores
from ..base import Draft, Drafter, DrafterKnob
from ._parts import Parts, part
from ._trie import Trie

CARD = Card(keeps="bits", breaks=("decode.draft", "decode.search"))


@dataclass(frozen=True, kw_only=True)
class Union(DrafterKnob):
    """At most `num_tokens` nodes; the loop keeps of them what pays."""

    card: ClassVar[Card] = CARD

    first: DrafterKnob = part("lookup")
    second: DrafterKnob = part("recycle")
    num_tokens: Annotated[int, Span(1, 255, "tokens")] = 64

    def open(self, rows: int, vocab: int) -> Drafter:
        return _Union(self, rows, vocab)


class _Union(Parts):
    def __init__(self, knob: Union, rows: int, vocab: int) -> None:
        super().__init__((knob.first, knob.second), rows, vocab)
        self.most = knob.num_tokens

    def propose(self, row: int, ids: Sequence[int], budget: int, ahead: Sequence[int] = ()) -> Draft:
        drafts = [self.ask(i, row, ids, budget, ahead) for i in range(2)]
        return merge(drafts, min(budget, self.most), "union")


def merge(drafts: Sequence[Draft], budget: int, source: str) -> Draft:
    """The prefix tree of `drafts`, cut to the `budget` best nodes."""
    trie = Trie()
    for draft in drafts:
        place = {ROOT: ROOT}
        for i, (token, parent, score) in enumerate(zip(draft.tokens, draft.parents, scores(draft), strict=True)):
            place[i] = trie.add(place[parent], token, score)
    # Stable: of equal scores the earlier node stays, which is the parent.
    best = sorted(range(len(trie.tokens)), key=lambda i: -trie.scores[i])[:budget]
    return keep(trie.draft(source), sorted(best))
