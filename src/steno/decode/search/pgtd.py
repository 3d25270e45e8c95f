"""PG-TD: Monte-Carlo tree search over tokens, in which the model proposes and a reward on whole programs decides.

Section 3 of the paper. A node is a text, its children are the `width` most probable tokens. From the root the child
with the largest P-UCB,

    Q(s, a) + beta(s) P(a | s) sqrt(ln N(s)) / (1 + N(s, a)),   beta(s) = ln((N(s) + c_base + 1) / c_base) + c,

is taken down to a leaf; the leaf gets its children, the first of them is continued greedily to its end (the paper's
beam search with one beam), and the reward of that text is backed up: Q is the *best* reward below a node, not the mean.
What the model says after a text is asked for once and kept, and so is what a text is worth (the paper's two caches).

What differs from the paper: where all texts below a node are known it is not entered again; the search stops at a
reward of 1, which nothing can better. For unit tests write
`reward = { name = "decode.score.tests", file = "tests.jsonl" }`; by default it looks for the likeliest text.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from steno.core import Card, Span

from ..base import Ground, Hypothesis, ScorerKnob, SearchKnob
from ._parts import Text, Walker, best, scorer

CARD = Card(
    paper="Planning with Large Language Models for Code Generation",
    keeps="near",
    breaks=("decode.search", "decode.draft", "decode.accept"),
    caps=("fork", "crop"),
)


@dataclass(frozen=True, kw_only=True)
class Pgtd(SearchKnob):
    """One rollout is greedy decoding."""

    card: ClassVar[Card] = CARD

    reward: ScorerKnob = scorer("likelihood")
    rollouts: Annotated[int, Span(1, 4096, "rollouts")] = 16
    width: Annotated[int, Span(1, 64, "tokens")] = 3
    c: Annotated[float, Span(0.0, 1000.0)] = 4.0
    c_base: Annotated[float, Span(1.0, 1e6)] = 10.0

    def search(self, ground: Ground) -> list[Hypothesis]:
        tree, root = Tree(ground, self), Node(Text(), 1.0)
        for _ in range(self.rollouts):
            path = [root]
            while path[-1].children:
                ways = [child for child in path[-1].children if not child.known]
                path.append(max(ways, key=lambda child: self._worth(path[-1], child)))
            if not path[-1].text.ended(ground):
                path[-1].children = tree.children(path[-1].text)
                path.append(path[-1].children[0])
            reward = tree.reward(tree.rollout(path[-1].text))
            for node in reversed(path):
                node.visits += 1
                node.value = max(node.value, reward)
                node.known = all(child.known for child in node.children) if node.children else node.text.ended(ground)
            if reward >= 1.0 or root.known:
                break
        return tree.found()

    def _worth(self, parent: "Node", child: "Node") -> float:
        beta = math.log((parent.visits + self.c_base + 1) / self.c_base) + self.c
        return child.value + beta * child.prior * math.sqrt(math.log(parent.visits)) / (1 + child.visits)


@dataclass(slots=True)
class Node:
    """A text in the tree: the probability of its last token, how often it was passed, the best reward below it, and
    whether there is nothing below it that is not known.
    """

    text: Text
    prior: float
    visits: int = 0
    value: float = 0.0
    known: bool = False
    children: "list[Node]" = field(default_factory=list["Node"])


class Tree:
    """What the model and the reward said, each asked once."""

    def __init__(self, ground: Ground, knob: Pgtd) -> None:
        self._ground, self._knob = ground, knob
        self._walker = Walker(ground)
        self._next: dict[tuple[int, ...], list[tuple[int, float]]] = {}
        self._rewards: dict[tuple[int, ...], tuple[float, Text]] = {}

    def children(self, text: Text) -> list[Node]:
        """Nodes for the most probable next tokens."""
        return [Node(text.grown(token, log), math.exp(log)) for token, log in self._best(text.tokens)]

    def rollout(self, text: Text) -> Text:
        """The greedy continuation to the end."""
        while not text.ended(self._ground):
            text = text.grown(*self._best(text.tokens)[0])
        return text

    def reward(self, text: Text) -> float:
        """What a whole text is worth."""
        if text.tokens not in self._rewards:
            self._rewards[text.tokens] = self._knob.reward.score(text.candidate(self._ground)), text
        return self._rewards[text.tokens][0]

    def found(self) -> list[Hypothesis]:
        """All whole texts, the best reward first and the likelier of equals."""
        ranked = sorted(self._rewards.values(), key=lambda pair: (-pair[0], -sum(pair[1].logs) / len(pair[1].logs)))
        return [Hypothesis(text.tokens, reward) for reward, text in ranked]

    def _best(self, tokens: tuple[int, ...]) -> list[tuple[int, float]]:
        if tokens not in self._next:
            law = self._walker.law(tokens)
            self._next[tokens] = [(token, float(law[token])) for token in best(law, self._knob.width)]
        return self._next[tokens]
