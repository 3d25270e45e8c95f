"""Graft: where the first drafter's draft ends, the second goes on.

The second drafter is asked what follows each of the best leaves of the first one's draft, as if the draft had come
true, and its answer hangs off the leaf; its scores count from the leaf's. Where the first has nothing, the second
drafts alone. A copy from the text thus ends in a tree of what the model tends to say there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from steno.core import ROOT, Card, Span

from .._trim import scores
from ..base import Draft, Drafter, DrafterKnob
from ._parts import Parts, part
from ._trie import Trie

CARD = Card(keeps="bits", breaks=("decode.draft", "decode.search"))


@dataclass(frozen=True, kw_only=True)
class Graft(DrafterKnob):
    """Extends the `leaves` best leaves; `num_tokens` bounds what one leaf gets."""

    card: ClassVar[Card] = CARD

    first: DrafterKnob = part("lookup")
    second: DrafterKnob = part("recycle")
    leaves: Annotated[int, Span(1, 64, "leaves")] = 2
    num_tokens: Annotated[int, Span(1, 255, "tokens")] = 16

    def open(self, rows: int, vocab: int) -> Drafter:
        return _Graft(self, rows, vocab)


class _Graft(Parts):
    def __init__(self, knob: Graft, rows: int, vocab: int) -> None:
        super().__init__((knob.first, knob.second), rows, vocab)
        self.knob = knob

    def propose(self, row: int, ids: Sequence[int], budget: int, ahead: Sequence[int] = ()) -> Draft:
        stock = self.ask(0, row, ids, budget, ahead)
        if not stock.tokens:
            return self.ask(1, row, ids, budget, ahead)
        trie = Trie()
        place = {ROOT: ROOT}
        for i, (token, parent, score) in enumerate(zip(stock.tokens, stock.parents, scores(stock), strict=True)):
            place[i] = trie.add(place[parent], token, score)
        inner = set(trie.parents)
        leaves = sorted((i for i in range(len(trie.tokens)) if i not in inner), key=lambda i: -trie.scores[i])
        for leaf in leaves[: self.knob.leaves]:
            room = min(budget - len(trie.tokens), self.knob.num_tokens)
            if room < 1:
                break
            scion = self.ask(1, row, ids, room, [*ahead, *trie.path(leaf)])
            place = {ROOT: leaf}
            for i, (token, parent, score) in enumerate(zip(scion.tokens, scion.parents, scores(scion), strict=True)):
                place[i] = trie.add(place[parent], token, trie.scores[leaf] * score)
        return trie.draft("graft")
