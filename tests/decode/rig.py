"""What the decode tests share: strict sessions, hostile drafters, and decoding written out naively as the oracle."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from steno.core import PAD, Card, Keeps, Nodes, Plan, Want
from steno.core.errors import CapsError
from steno.decode import Completion, CostTable, Request, generate
from steno.decode._noise import gumbel
from steno.decode._view import NodeView
from steno.decode.base import About, Draft, Drafter, DrafterKnob, Seen
from steno.decode.draft.lookup import Lookup
from steno.decode.draft.recycle import Recycle
from steno.decode.draft.suffix import Suffix
from steno.decode.loop import acceptor
from steno.models.table import TableModel, TableSession, TableStep

FREE = CostTable({1: 1.0})
"""Width costs nothing, so every draft runs whole."""

DRAFTERS = (
    Lookup(),
    Lookup(max_ngram=3, min_ngram=2, num_tokens=4),
    Suffix(alpha=1.0),
    Suffix(tree=True, alpha=4.0, offset=3, max_depth=8, max_requests=2),
    Recycle(),
)


@dataclass(frozen=True, kw_only=True)
class Strict(TableModel):
    """A table model with sessions that check every promise of their caller, and that may lack abilities.

    block    a step must not cross a multiple of it, as in a cache that seals blocks; 0: none
    inexact  logits of a row that branches come out reversed
    """

    tree: bool = True
    crop: bool = True
    width: int = 256
    block: int = 0
    inexact: bool = False

    def open(self, batch, capacity, cache=None):
        return StrictSession(self, [[] for _ in range(batch)], min(capacity, self.context))


class StrictSession(TableSession):
    model: Strict

    @property
    def caps(self):
        asked = self.model
        exact = Keeps.NEAR if asked.inexact else Keeps.BITS
        return replace(super().caps, tree=asked.tree, crop=asked.crop, max_width=asked.width, tree_exact=exact)

    def fork(self, rows):
        return StrictSession(self.model, [list(self._rows[row]) for row in rows], self.capacity)

    def room(self):
        whole = super().room()
        block = self.model.block
        return tuple(min(r, block - n % block) for r, n in zip(whole, self.lengths, strict=True)) if block else whole

    def forward(self, nodes: Nodes, want: Want = Want()) -> TableStep:
        parents = nodes.parents
        assert parents.shape[1] <= self.model.width, "wider than the session takes"
        step = super().forward(nodes, want)
        for b, limit in enumerate(self.room()):
            real = int((parents[b] != PAD).sum())
            assert (parents[b, real:] == PAD).all(), "padding stands at the end"
            if real:
                assert (nodes.tokens[b, :real] >= 0).all() and (nodes.tokens[b, :real] < self.vocab).all()
                if int((parents[b] == -1).sum()) == real > 1:
                    # Measuring costs: siblings, of which nothing is read.
                    continue
                assert int((parents[b] == -1).sum()) == 1, "the pending token is the only root"
                depth = [0] * real
                for w in range(1, real):
                    depth[w] = depth[parents[b, w]] + 1
                assert max(depth) + 1 <= limit, "deeper than the row has room for"
                if any(parents[b, w] != w - 1 for w in range(real)):
                    assert self.model.tree, "a branch on a session of chains"
                    if self.model.inexact:
                        step.logits[b] = step.logits[b, :, ::-1]
        return step

    def crop(self, lengths):
        if not self.model.crop and any(n not in (0, held) for n, held in zip(lengths, self.lengths, strict=True)):
            raise CapsError("no crop here")
        super().crop(lengths)


def plain(model: TableModel, request: Request, plan: Plan = Plan(), text=None) -> tuple[tuple[int, ...], str]:
    """One token at a time, straight from the model's rows: (tokens, finish)."""
    view = NodeView(())
    judge = acceptor(plan)
    shapers = plan.find("decode.shape")
    ids = list(request.prompt)
    ends = frozenset() if request.ignore_eos else model.eos
    about = About(start=len(request.prompt), ends=ends, text=text)
    while True:
        done = tuple(ids[len(request.prompt) :])
        if done and done[-1] in model.eos and not request.ignore_eos:
            return done, "eos"
        if len(done) >= request.max_tokens:
            return done, "length"
        logits = model.row(ids)
        for shaper in shapers:
            logits = shaper.shape_within(logits, ids, about)
        view.aim(0, request, ids, Draft())
        if judge.name == "decode.accept.gumbel":
            ids.append(int((logits + gumbel(view.key(-1, "token"), len(logits))).argmax()))
        else:
            ids.append(int(logits.argmax()))


def requests(count: int, *, vocab: int, seed: int, longest: int = 30, most: int = 50, **more) -> list[Request]:
    """Requests of ragged lengths; prompts repeat themselves, so that drafters find something."""
    rng = random.Random(seed)
    out = []
    for number in range(count):
        part = [rng.randrange(vocab) for _ in range(rng.randint(1, max(1, longest // 2)))]
        prompt = tuple((part * 3)[: rng.randint(1, longest)])
        out.append(
            Request(
                number=number, prompt=prompt, max_tokens=rng.choice([0, 1, 2, 3, most, most, most]), seed=seed, **more
            )
        )
    return out


def run(model, asked: Sequence[Request], *knobs, batch: int = 1, costs: CostTable = FREE, **more) -> list[Completion]:
    return generate(model, asked, Plan(knobs), batch=batch, costs=costs, **more)


@dataclass(frozen=True, kw_only=True)
class Hostile(DrafterKnob):
    """Drafts what a drafter never should. `model` is read by the kinds that know the truth."""

    card: ClassVar[Card] = Card(keeps="bits", breaks=("decode.draft",))
    model: ClassVar[TableModel]

    kind: str = "random"

    def open(self, rows: int, vocab: int) -> Drafter:
        return _Hostile(self, vocab)


Hostile.__module__ = "steno.decode.draft.hostile"

KINDS = ("random", "tree", "end", "outside", "long", "twins", "muddle", "truth", "forest", "flaky", "decoy", "sampled")


class _Hostile:
    top = 0
    laws = False

    def __init__(self, knob: Hostile, vocab: int) -> None:
        self.kind, self.model, self.vocab = knob.kind, type(knob).model, vocab
        self.rng = random.Random(7)

    def start(self, row: int, request: Request) -> None: ...

    def observe(self, row: int, seen: Seen) -> None:
        assert seen.path[0] == 0
        assert len(seen.tokens) == len(seen.parents)
        for up, node in zip(seen.path, seen.path[1:], strict=False):
            assert seen.parents[node] == up
        assert [seen.tokens[i] for i in seen.path[1:]] == list(seen.new[: len(seen.path) - 1])

    def finish(self, row: int, ids: Sequence[int]) -> None: ...

    def truth(self, ids: Sequence[int], count: int) -> list[int]:
        out = list(ids)
        for _ in range(count):
            out.append(int(self.model.row(out).argmax()))
        return out[len(ids) :]

    def propose(self, row: int, ids: Sequence[int], budget: int, ahead: Sequence[int] = ()) -> Draft:
        rng, vocab = self.rng, self.vocab
        some = [rng.randrange(vocab) for _ in range(6)]
        match self.kind:
            case "random":
                return Draft.chain(some)
            case "tree":
                return Draft(tuple(some), tuple(rng.randint(-1, i - 1) for i in range(6)))
            case "end":
                return Draft.chain([self.model.end] * 3)
            case "outside":
                return Draft.chain([*self.truth(ids, 2), vocab + rng.randrange(3), -1, 0])
            case "long":
                return Draft.chain(self.truth(ids, 3) + some * 200)
            case "twins":
                best = self.truth(ids, 1)[0]
                return Draft((best, best, *self.truth([*ids, best], 1), 0), (-1, -1, 1, 0))
            case "muddle":
                return Draft((*some[:3], -5, *some[3:5], vocab), (2, -1, -7, -1, 1, 9, 1))
            case "truth":
                return Draft.chain(self.truth(ids, 12))
            case "sampled":
                # Two children without replacement, and one below the first, all with their laws.
                laws = np.zeros((3, vocab), np.float32)
                laws[0] = laws[2] = np.arange(1, vocab + 1) / (vocab * (vocab + 1) / 2)
                laws[1] = laws[0]
                first, third = rng.choices(range(vocab), laws[0], k=2)
                laws[1, first] = 0
                laws[1] /= laws[1].sum()
                second = rng.choices(range(vocab), laws[1])[0]
                return Draft((first, second, third), (-1, -1, 0), (0.9, 0.1, 0.5), laws, "sampled")
            case "decoy":
                one, two = self.truth(ids, 2)
                return Draft((two, one, two), (-1, -1, 1))
            case "flaky":
                return Draft.chain([*self.truth(ids, 3), some[0]]) if rng.random() < 0.5 else Draft()
            case _:
                true = self.truth(ids, 4)
                return Draft(
                    (some[0], true[0], some[1], true[1], some[2], true[2], true[3]), (-1, -1, 1, 1, 0, 3, 5),
                    (0.2, 0.9, 0.1, 0.8, 0.1, 0.7, 0.6),
                )  # fmt: skip


def softmax(logits: np.ndarray) -> np.ndarray:
    law = np.exp(logits.astype(np.float64) - logits.max())
    return law / law.sum()


def scripted(table, vocab, end=-1):
    """A model that says log(table[text]) after a text, and is flat elsewhere."""
    flat = [1.0 / vocab] * vocab

    def script(past):
        with np.errstate(divide="ignore"):
            return np.log(np.array(table.get(past[1:], flat)))

    return TableModel(vocab=vocab, script=script, end=end)


def search(model, knob, most=3, prompt=(0,), **more):
    (done,) = generate(model, [Request(number=0, prompt=prompt, max_tokens=most, **more)], Plan((knob,)))
    return done


def rollout(model, ids: Sequence[int], count: int) -> list[int]:
    """Greedy continuation, every token from a session of its own that was given the whole past by prefill."""
    out = list(ids)
    while len(out) < len(ids) + count:
        out.append(int(after(model, out).argmax()))
    return out[len(ids) :]


def after(model, ids: Sequence[int]) -> np.ndarray:
    """Logits [V] after `ids`, from a fresh session."""
    logits = model.open(1, len(ids) + 1).prefill([list(ids)], last=True)
    return np.array(logits[0])


def naive_beam(model, prompt, width, most, power, worth=lambda text: 0.0, pool=10**6):
    """Beam search over whole texts, each scored from the model's rows alone, and by what it is `worth` beside that."""
    beams, done = [((), 0.0)], []
    for _ in range(most):
        grown = []
        for text, score in beams:
            law = np.log(softmax(model.row([*prompt, *text])))
            grown += [((*text, int(v)), score + law[v]) for v in np.argsort(-law, kind="stable")[:pool]]
        grown.sort(key=lambda item: -item[1] - worth(item[0]))
        beams = []
        for text, score in grown:
            if len(beams) == width:
                break
            (done if text[-1] == model.end else beams).append((text, score))
        if len(done) >= width:
            beams = []
            break
    return sorted(((t, s / len(t) ** power + worth(t)) for t, s in [*done, *beams]), key=lambda item: -item[1])
