"""The lattice of texts: nodes that several texts go through, never in a circle."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..base import Ground

CLOSE = 5
"""Texts merge where their lengths differ by less."""


@dataclass(slots=True)
class Node:
    """The text that was run to come here; edges are (node, log-probability of its last token), and come
    from the nodes `above`.
    """

    text: tuple[int, ...] = ()
    score: float = 0.0
    parent: int = -1
    cost: float = 0.0
    above: set[int] = field(default_factory=set[int])
    edges: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])


class Graph:
    """The lattice; node 0 is the empty text. With `back`, merging goes on to the tokens before."""

    def __init__(self, ngram: int, *, back: bool = False) -> None:
        self.nodes = [Node()]
        self._ngram = ngram
        self._back = back
        self._gone: set[int] = set()
        self._known: dict[tuple[int, ...], list[int]] = {}

    def add(self, parent: int, token: int, cost: float) -> int:
        """A node for `token` after `parent`."""
        above = self.nodes[parent]
        self.nodes.append(Node((*above.text, token), above.score + cost, parent, cost, {parent}))
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
            if self.merged(other):
                continue
            close = abs(len(self.nodes[other].text) - len(made.text)) < CLOSE
            if close and len(self.nodes[other].text) >= self._ngram and not self._reaches(other, made.parent):
                edges = self.nodes[made.parent].edges
                edges.remove((node, made.cost))
                edges.append((other, made.cost))
                self.nodes[other].above.add(made.parent)
                self._gone.add(node)
                if self._back:
                    self._zip(made.parent, self.nodes[other].parent)
                return True
        return False

    def merged(self, node: int) -> bool:
        """Whether another node took its place."""
        return node in self._gone

    def _zip(self, one: int, two: int) -> None:
        """Make one node of two, and of those before them within the equal tokens, as long as no circle closes."""
        for _ in range(self._ngram - 1):
            if one == two or {one, two} & self._gone or self._reaches(one, two) or self._reaches(two, one):
                return
            from_, into = self.nodes[one], self.nodes[two]
            self._gone.add(one)
            for node in from_.above:
                self.nodes[node].edges = _best(
                    (two if child == one else child, cost) for child, cost in self.nodes[node].edges
                )
            into.above |= from_.above
            into.edges = _best((*into.edges, *from_.edges))
            for child, _ in from_.edges:
                self.nodes[child].above = self.nodes[child].above - {one} | {two}
            from_.edges = []
            one, two = from_.parent, into.parent

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


def _best(edges: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    """One edge to each node, the likeliest."""
    out: dict[int, float] = {}
    for child, cost in edges:
        out[child] = max(cost, out.get(child, cost))
    return list(out.items())
