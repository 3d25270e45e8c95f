"""Best-first search with recombination: texts that come to the same words share what follows, as a lattice.

Section 3 of the paper. A heap holds continuations by log-probability over length to the power `length_power`; the best
is taken and followed greedily to its end (the paper's depth-first completion), its alternatives among the `k` best
tokens going to the heap. A text whose last `ngram` tokens end an expanded one of about the same length is not followed:
its edge leads there instead, and one expansion serves both. The lattice's paths are the texts, far more than were run.

There are two ways to merge. RCB redirects that edge. ZIP goes back over the equal tokens and makes one node of two
at each, so that what follows either follows both; what waits in the heap behind a node that was merged
away is dropped.

What differs from the paper: a prompt of tokens in place of an encoder; texts are told apart by tokens, not by
lower-cased words. A text's score adds up its edges, so behind a merge it is that of the past that was expanded.
"""

from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Annotated, ClassVar

import numpy as np

from steno.core import Card, OneOf, Span

from .._nodes import common
from ..base import Ground, Hypothesis, SearchKnob
from ._graph import Graph

CARD = Card(
    paper="Massive-scale Decoding for Text Generation using Lattices",
    keeps="near",
    breaks=("decode.search", "decode.draft", "decode.accept"),
    caps=("fork", "crop"),
)


@dataclass(frozen=True, kw_only=True)
class Lattice(SearchKnob):
    """As many expansions as `beams` beams would take; `ngram` of 0 merges nothing. The best `texts` come out."""

    card: ClassVar[Card] = CARD
    points = ({"ngram": 0, "texts": 1024}, {"texts": 1024}, {"merge": "zip", "texts": 1024})

    beams: Annotated[int, Span(1, 256, "beams")] = 8
    k: Annotated[int, Span(1, 64, "tokens")] = 5
    ngram: Annotated[int, Span(0, 16, "tokens")] = 4
    merge: Annotated[str, OneOf("rcb", "zip")] = "rcb"
    length_power: Annotated[float, Span(0.0, 4.0)] = 0.75
    texts: Annotated[int, Span(1, 1024, "texts")] = 64

    def search(self, ground: Ground) -> list[Hypothesis]:
        session, graph = ground.open(), Graph(self.ngram, back=self.merge == "zip")
        size = len(ground.request.prompt)
        held: tuple[int, ...] = ()
        heap: list[tuple[float, int, int, int, float]] = []
        serial = spent = 0
        node = 0
        while True:
            while not graph.ended(node, ground) and not graph.merge(node) and spent < self.beams * ground.limit:
                text = graph.nodes[node].text
                if spent:
                    # The row goes back to what it shares with the text, whose last token is always run.
                    session.crop([size + min(common(held, text), len(text) - 1)])
                (law,) = ground.advance(session, [text])
                held = text
                spent += 1
                graph.expanded(node)
                best = [t for t in np.argsort(-law, kind="stable")[: self.k].tolist() if law[t] > -np.inf]
                for token in best[1:]:
                    score = graph.nodes[node].score + float(law[token])
                    rank = -score / (len(text) + 1) ** self.length_power
                    heappush(heap, (rank, serial, node, token, float(law[token])))
                    serial += 1
                node = graph.add(node, best[0], float(law[best[0]]))
            while heap and graph.merged(heap[0][2]):
                heappop(heap)
            if not heap or spent >= self.beams * ground.limit:
                break
            _, _, parent, token, cost = heappop(heap)
            node = graph.add(parent, token, cost)
        return self._paths(graph, ground)

    def _paths(self, graph: "Graph", ground: Ground) -> list[Hypothesis]:
        """The best whole texts; of the ways to a node the best `texts` are followed."""
        whole: dict[tuple[int, ...], float] = {}
        ways: dict[int, dict[tuple[int, ...], float]] = {0: {(): 0.0}}
        for node in graph.order():
            own = graph.nodes[node].text
            # The text that was run stays: others may turn out too long, or end too soon.
            here = sorted(ways.pop(node, {}).items(), key=lambda way: (way[0] != own, -self._rank(*way)))[: self.texts]
            for child, cost in graph.nodes[node].edges:
                onward = ways.setdefault(child, {})
                for text, score in here:
                    longer = (*text, graph.nodes[child].text[-1])
                    if len(longer) <= ground.limit:
                        onward[longer] = max(score + cost, onward.get(longer, -np.inf))
            for text, score in here:
                if text and (text[-1] in ground.ends or len(text) == ground.limit):
                    whole[text] = max(self._rank(text, score), whole.get(text, -np.inf))
        best = sorted(whole.items(), key=lambda item: -item[1])[: self.texts]
        return [Hypothesis(text, score) for text, score in best]

    def _rank(self, text: tuple[int, ...], score: float) -> float:
        return score / max(len(text), 1) ** self.length_power
