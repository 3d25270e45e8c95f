"""Drafters of the conformance kit: they know the right text, and mix it with what a loop must not fall for.

Real drafters are seldom right on an arbitrary model, so they alone would leave the accepting half of the loop untried.
A proposal is a function of (seed, request, ids): batch, order and history do not enter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt

from steno.core import ROOT, Card, Key, OneOf
from steno.decode.base import Draft, DrafterKnob, Request, Seen

CARD = Card(keeps="bits", breaks=("decode.draft",))

KINDS = ("chain", "tree", "hostile", "sampled")


@dataclass(frozen=True, kw_only=True)
class Scripted(DrafterKnob):
    """Proposes from `texts[i]` (prompt and what plain decoding made of it) for request number i.

    chain    the right tokens, often wrong from some depth on
    tree     the right path among wrong siblings, which have children of their own
    hostile  too long, with end tokens, ids outside the vocabulary and twins
    sampled  tokens drawn from a law of the drafter's own, which it hands over
    """

    card: ClassVar[Card] = CARD
    texts: tuple[tuple[int, ...], ...] = ()
    kind: Annotated[str, OneOf(*KINDS)] = "chain"
    ends: tuple[int, ...] = ()
    seed: int = 0

    @property
    def name(self) -> str:
        return f"decode.draft.{self.kind}"

    def open(self, rows: int, vocab: int) -> "Script":
        return Script(self, rows, vocab)


class Script:
    """Running state: which request holds which row."""

    top = 0
    laws = False

    def __init__(self, knob: Scripted, rows: int, vocab: int) -> None:
        self.knob = knob
        self.vocab = vocab
        self._requests: list[Request | None] = [None] * rows

    def start(self, row: int, request: Request) -> None:
        self._requests[row] = request

    def observe(self, row: int, seen: Seen) -> None:
        pass

    def finish(self, row: int, ids: Sequence[int]) -> None:
        self._requests[row] = None

    def propose(self, row: int, ids: Sequence[int], budget: int, ahead: Sequence[int] = ()) -> Draft:
        request = self._requests[row]
        assert request is not None
        ids = [*ids, *ahead]
        key = Key(self.knob.seed, request.number, len(ids), "draft")
        rng = np.random.Generator(np.random.Philox(key=key.bits(128)))
        text = self.knob.texts[request.number] if request.number < len(self.knob.texts) else ()
        right = list(text[len(ids) :]) if text[: len(ids)] == tuple(ids) else []
        if self.knob.kind == "sampled":
            return self._sampled(rng, budget)
        if self.knob.kind == "tree":
            return self._tree(right, rng, budget)
        if self.knob.kind == "hostile":
            return self._hostile(right, rng, budget)
        length = int(rng.integers(0, min(budget, 8) + 1))
        draft = [right[i] if i < len(right) else self._any(rng) for i in range(length)]
        if length and rng.random() < 0.6:
            draft[int(rng.integers(length))] = self._any(rng)
        return Draft.chain(draft, source="chain")

    def _any(self, rng: np.random.Generator) -> int:
        return int(rng.integers(self.vocab))

    def _tree(self, right: list[int], rng: np.random.Generator, budget: int) -> Draft:
        tokens: list[int] = []
        parents: list[int] = []
        trunk, stray = ROOT, ROOT
        for depth in range(int(rng.integers(1, 6))):
            fan = int(rng.integers(1, 4))
            true = right[depth] if depth < len(right) and rng.random() < 0.85 else self._any(rng)
            level = [true] + [self._any(rng) for _ in range(fan - 1)]
            order = rng.permutation(fan)
            grown, wrong = trunk, stray
            for i in order:
                # Wrong siblings hang off the right path or off the last wrong node: both must leave no trace.
                parent = trunk if i == 0 or rng.random() < 0.6 else stray
                tokens.append(level[i])
                parents.append(parent)
                if i == 0:
                    grown = len(tokens) - 1
                else:
                    wrong = len(tokens) - 1
            trunk, stray = grown, wrong
        return Draft(tuple(tokens[:budget]), tuple(parents[:budget]), (), None, "tree")

    def _hostile(self, right: list[int], rng: np.random.Generator, budget: int) -> Draft:
        wild = [-1, self.vocab, 2**31 - 1, -(2**31), *self.knob.ends]
        length = 2 * budget + 3 if rng.random() < 0.3 else int(rng.integers(1, 9))
        tokens = [right[i] if i < len(right) else self._any(rng) for i in range(min(length, 300))]
        for _ in range(int(rng.integers(0, 3))):
            tokens[int(rng.integers(min(len(tokens), 6)))] = int(rng.choice(wild))
        parents = list(range(ROOT, len(tokens) - 1))
        if rng.random() < 0.5 and len(tokens) < 300:
            # A twin of the first token, and something below it.
            tokens += [tokens[0], self._any(rng)]
            parents += [ROOT, len(tokens) - 2]
        return Draft(tuple(tokens), tuple(parents), (), None, "hostile")

    def _sampled(self, rng: np.random.Generator, budget: int) -> Draft:
        count = min(budget, 4)
        laws = sample_laws(rng, count, self.vocab)
        tokens = tuple(sample(rng, law) for law in laws)
        return Draft(tokens, tuple(range(ROOT, count - 1)), (), laws, "sampled")


def sample_laws(rng: np.random.Generator, count: int, vocab: int) -> npt.NDArray[np.float32]:
    """`count` peaked laws [count, V], with zeros among them."""
    laws = rng.gamma(0.3, size=(count, vocab)) + 1e-9
    laws[rng.random(laws.shape) < 0.2] = 0.0
    laws[:, 0] += 1e-6
    return (laws / laws.sum(axis=1, keepdims=True)).astype(np.float32)


def sample(rng: np.random.Generator, law: npt.NDArray[np.float32]) -> int:
    """One id drawn from a law [V]."""
    exact = law.astype(np.float64)
    return int(rng.choice(len(exact), p=exact / exact.sum()))
