"""Ground of drafters with trained parts: the adapter as a field, small networks on the model's hidden states, trees."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path

import numpy as np
import numpy.typing as npt

from steno.core import ROOT, Model, Session
from steno.core.errors import KnobError

from ..adapter import SUFFIX, Adapter, check_base, load
from ..base import Draft, DrafterKnob, Floats, Ints, Request, Seen


@dataclass(frozen=True, kw_only=True)
class TrainedKnob(DrafterKnob):
    """Settings of a drafter with trained parts.

    adapter  path of the file that `steno train` wrote for this method and this model
    """

    adapter: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adapter and not self.adapter.endswith(SUFFIX):
            raise self._wrong()

    @property
    def complete(self) -> bool:
        return bool(self.adapter)

    def fits(self, model: Model) -> None:
        check_base(self.load(), model, Path(self.adapter))

    def load(self) -> Adapter:
        """The adapter. Raises KnobError where none is named, ModelError or DataError where it cannot be used."""
        if not self.adapter:
            raise self._wrong()
        return load(Path(self.adapter), self.name)

    def _wrong(self) -> KnobError:
        return KnobError(
            f"{self.name}: adapter must be the path of a {SUFFIX} file that "
            f"`steno train {self.name.rpartition('.')[2]} --out DIR` wrote, got {self.adapter!r}. "
            f"Set it with --set {self.name}.adapter=PATH"
        )


class Heads:
    """Running state of a drafter that works on the last hidden state before the pending token.

    state  by row that state [M] at root mean square 1, None before the first step of a request
    """

    top = 0
    laws = False
    prompts = False

    def __init__(self, adapter: Adapter, rows: int) -> None:
        self.weights = adapter.tensors
        self.hidden = adapter.card.layers
        self.state: list[Floats | None] = [None] * rows
        self._session: Session | None = None

    @property
    def session(self) -> Session:
        assert self._session is not None, "the loop attaches a session before it drafts"
        return self._session

    def attach(self, session: Session) -> None:
        self._session = session

    def start(self, row: int, request: Request) -> None:
        self.state[row] = None

    def read(self, row: int, ids: Sequence[int], hidden: Mapping[int, Floats]) -> None:
        pass

    def observe(self, row: int, seen: Seen) -> None:
        if seen.hidden is not None:
            self.state[row] = level(seen.hidden[self.hidden[0]][seen.path[-1]])

    def finish(self, row: int, ids: Sequence[int]) -> None:
        self.state[row] = None


def level(states: Floats) -> Floats:
    """States [..., M] at root mean square 1: layers differ in scale by magnitudes."""
    return states / np.sqrt(np.square(states).mean(-1, keepdims=True) + np.float32(1e-6))


def silu(x: Floats) -> Floats:
    """x * sigmoid(x), without overflow."""
    return single(x / (1 + np.exp(-np.maximum(x, -80.0, dtype=np.float32))))


def single(x: npt.NDArray[np.floating]) -> Floats:
    """float32, which single-precision arithmetic gives anyway, but not to a type checker."""
    return x.astype(np.float32, copy=False)


def best(logits: Floats, count: int) -> tuple[Ints, Floats]:
    """The `count` best ids [n, count] of logits [n, V] and their probabilities, best first, ties by the lower id."""
    count = min(count, logits.shape[1])
    rows = np.arange(len(logits))
    left = logits - logits.max(1, keepdims=True)
    total = np.exp(left).sum(1)
    ids = np.empty((len(left), count), np.int32)
    found = np.empty((len(left), count), np.float32)
    # A few passes of argmax are faster than sorting a vocabulary.
    for rank in range(count):
        ids[:, rank] = chosen = left.argmax(1)
        found[:, rank] = left[rows, chosen]
        left[rows, chosen] = -np.inf
    return ids, np.exp(found) / total[:, None]


def grid(ids: Ints, probs: Floats, most: int, source: str) -> Draft:
    """The `most` likeliest nodes of the tree in which every node of depth d has the children `ids[d]` [K, C].

    The likelihood of a node is the product of the probabilities along its path: depths are taken as independent.
    """
    names, shares = ids.tolist(), probs.tolist()
    tokens: list[int] = []
    parents: list[int] = []
    scores: list[float] = []
    # (-likelihood, age, parent, depth, rank): a node brings its next sibling and its first child.
    heap = [(-shares[0][0], 0, ROOT, 0, 0)] if names else []
    age = 0
    while heap and len(tokens) < most:
        negative, _, parent, depth, rank = heappop(heap)
        node = len(tokens)
        tokens.append(names[depth][rank])
        parents.append(parent)
        scores.append(-negative)
        age += 1
        if rank + 1 < len(names[depth]):
            share = negative / shares[depth][rank] * shares[depth][rank + 1] if shares[depth][rank] > 0 else 0.0
            heappush(heap, (share, 2 * age, parent, depth, rank + 1))
        if depth + 1 < len(names):
            heappush(heap, (negative * shares[depth + 1][0], 2 * age + 1, node, depth + 1, 0))
    return Draft(tuple(tokens), tuple(parents), tuple(scores), None, source)


def grow(
    step: Callable[[Ints, Ints], Floats],
    path: Sequence[int],
    *,
    depth: int,
    fan: int,
    beam: int,
    most: int,
    source: str,
) -> Draft:
    """A tree of at most `most` nodes below the end of `path`, level by level.

    Of the `fan` likeliest children of every node of a level, the `beam` likeliest by the product along their paths
    make the next level. `step(parents [n], tokens [n])` runs a level, its parents being places in the level before
    it, and gives logits [n, V] of what follows; `path` begins with the pending token.
    """
    none = np.zeros(1, np.int32)
    for token in path[:-1]:
        step(none, np.array([token], np.int32))
    tokens: list[int] = []
    parents: list[int] = []
    scores: list[float] = []
    places = [ROOT]
    above, level_tokens, mass = none, np.array(path[-1:], np.int32), np.ones(1, np.float32)
    for _ in range(depth):
        ids, probs = best(step(above, level_tokens), fan)
        reach = (mass[:, None] * probs).ravel()
        chosen = np.argsort(-reach, kind="stable")[: min(beam, most - len(tokens))]
        if not len(chosen):
            break
        above, mass = (chosen // ids.shape[1]).astype(np.int32), reach[chosen]
        level_tokens = ids.ravel()[chosen]
        first = len(tokens)
        tokens += level_tokens.tolist()
        parents += [places[i] for i in above.tolist()]
        scores += mass.tolist()
        places = list(range(first, len(tokens)))
    return Draft(tuple(tokens), tuple(parents), tuple(scores), None, source)
