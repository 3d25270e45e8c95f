"""Best-first search with recombination: texts that come to the same words share what follows, as a lattice.

Section 3 of the paper. A heap holds continuations by log-probability over length to the power `length_power`; the best
is taken and followed greedily to its end (the paper's depth-first completion), its alternatives among the `k` best
tokens going to the heap. A text whose last `ngram` tokens end an expanded one of about the same length is not followed:
its edge leads there instead, and one expansion serves both. The lattice's paths are the texts, far more than were run.

What differs from the paper: of its two ways to merge this is RCB, which redirects the edge, without ZIP, which merges
the equal tokens before as well; a prompt of tokens in place of an encoder; texts are told apart by tokens, not by
lower-cased words. A text's score adds up its edges, so behind a merge it is that of the past that was expanded.
"""

from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Annotated, ClassVar

import numpy as np

from steno.core import Card, Span

from .._nodes import common
from ..base import Ground, Hypothesis, SearchKnob

CARD = Card(
    paper="Massive-scale Decoding for Text Generation using Lattices",
    keeps="near",
    breaks=("decode.search", "decode.draft", "decode.accept"),
    caps=("fork", "crop"),
)

CLOSE = 5
"""Texts merge where their lengths differ by less."""


@dataclass(frozen=True, kw_only=True)
class Lattice(SearchKnob):
    """As many expansions as `beams` beams would take; `ngram` of 0 merges nothing. The best `texts` come out."""

    card: ClassVar[Card] = CARD
    points = ({"ngram": 0, "texts": 1024}, {"texts": 1024})

    beams: Annotated[int, Span(1, 256, "beams")] = 8
    k: Annotated[int, Span(1, 64, "tokens")] = 5
    ngram: Annotated[int, Span(0, 16, "tokens")] = 4
    length_power: Annotated[float, Span(0.0, 4.0)] = 0.75
    texts: Annotated[int, Span(1, 1024, "texts")] = 64

    def search(self, ground: Ground) -> list[Hypothesis]:
        session, graph = ground.open(), Graph(self.ngram)
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


@dataclass(slots=True)
class Node:
    """The text that was run to come here; edges are (node, log-probability of its last token)."""

    text: tuple[int, ...] = ()
    score: float = 0.0
    parent: int = -1
    cost: float = 0.0
    edges: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])


class Graph:
    """The lattice; node 0 is the empty text."""

    def __init__(self, ngram: int) -> None:
        self.nodes = [Node()]
        self._ngram = ngram
        self._known: dict[tuple[int, ...], list[int]] = {}

    def add(self, parent: int, token: int, cost: float) -> int:
        """A node for `token` after `parent`."""
        above = self.nodes[parent]
        self.nodes.append(Node((*above.text, token), above.score + cost, parent, cost))
        above.edges.append((len(self.nodes) - 1, cost))
        return len(self.nodes) - 1

    def ended(self, node: int, ground: Ground) -> bool:
        """Whether nothing follows the node."""
        text = self.nodes[node].text
        return bool(text) and (text[-1] in ground.ends or len(text) == ground.limit)

    def expanded(self, node: int) -> None:
        """Others may merge into the node from now on."""
        self._known.setdefault(self.nodes[node].text[-self._ngram :] if self._ngram else (), []).append(node)

    def merge(self, node: int) -> bool:
        """Lead the edge of a new node to an expanded one that ends alike, where there is one and no circle closes."""
        made = self.nodes[node]
        if not self._ngram or len(made.text) < self._ngram:
            return False
        for other in self._known.get(made.text[-self._ngram :], ()):
            close = abs(len(self.nodes[other].text) - len(made.text)) < CLOSE
            if close and len(self.nodes[other].text) >= self._ngram and not self._reaches(other, made.parent):
                edges = self.nodes[made.parent].edges
                edges.remove((node, made.cost))
                edges.append((other, made.cost))
                return True
        return False

    def order(self) -> list[int]:
        """Nodes that can be reached, each before what follows it."""
        out: list[int] = []
        seen: set[int] = set()
        stack: list[tuple[int, bool]] = [(0, False)]
        while stack:
            node, left = stack.pop()
            if left:
                out.append(node)
            elif node not in seen:
                seen.add(node)
                stack.append((node, True))
                stack += [(child, False) for child, _ in self.nodes[node].edges]
        return out[::-1]

    def _reaches(self, start: int, goal: int) -> bool:
        stack, seen = [start], {start}
        while stack:
            node = stack.pop()
            if node == goal:
                return True
            fresh = [child for child, _ in self.nodes[node].edges if child not in seen]
            seen.update(fresh)
            stack += fresh
        return False
