"""Scripted model: logits are a pure function of the prefix, so every algorithm is testable in microseconds.

Each node's past is a 64-bit hash of its token ids; the logits row is a keyed expansion of that hash. `order` cuts the
past to the last few tokens, which makes text that repeats and drafters that succeed. `script` overrides the rows
altogether. Arithmetic is on integers up to one final scaling, so rows are bit-equal however they are reached.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from steno.core import PAD, Caps, Keeps, Nodes, Want
from steno.core.errors import CapsError, ModelError, PromptError
from steno.core.tier import CacheSpec

from .base import ModelSpec

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
Script = Callable[[tuple[int, ...]], npt.ArrayLike]

SHARPNESS = 6.0
"""Standard deviation of the logits: a peaked law, as a trained model has."""


@dataclass(frozen=True, kw_only=True)
class TableModel:
    """The model. `script(prefix) -> [V] logits` replaces the hashed rows."""

    vocab: int = 32
    seed: int = 0
    order: int = 0
    context: int = 4096
    end: int = -1
    script: Script | None = None
    backend: str = "table"

    @property
    def name(self) -> str:
        return f"table:{self.vocab}:{self.seed}"

    @property
    def eos(self) -> frozenset[int]:
        return frozenset({self.end}) if self.end >= 0 else frozenset()

    @property
    def fingerprint(self) -> str:
        text = f"{self.vocab}/{self.seed}/{self.order}/{self.script is not None}"
        return blake2b(text.encode(), digest_size=16).hexdigest()

    @property
    def origin(self) -> str:
        return self.fingerprint

    def weight_bytes(self) -> int:
        return 0

    def open(self, batch: int, capacity: int, cache: CacheSpec | None = None) -> "TableSession":
        if cache is not None:
            raise CapsError("the table backend keeps no KV, so it takes no cache form. Use --backend hf.")
        return TableSession(self, [[] for _ in range(batch)], min(capacity, self.context))

    def row(self, past: Sequence[int]) -> Floats:
        """Logits [V] after the ids `past`."""
        if self.script is not None:
            return np.asarray(self.script(tuple(past)), dtype=np.float32)
        used = past[-self.order :] if self.order else past
        data = np.asarray(used, dtype="<i4").tobytes() + self.seed.to_bytes(8, "little", signed=True)
        start = int.from_bytes(blake2b(data, digest_size=8).digest(), "little")
        return _expand(start, self.vocab)


class TableStep:
    """Outputs of one forward."""

    def __init__(self, logits: Floats) -> None:
        self.logits = logits

    @property
    def argmax(self) -> Ints:
        return self.logits.argmax(-1).astype(np.int32)

    def top(self, count: int) -> tuple[Ints, Floats]:
        order = np.argsort(-self.logits, axis=-1, kind="stable")[..., :count].astype(np.int32)
        return order, np.take_along_axis(self.logits, order, axis=-1)

    def hidden(self, layer: int) -> Floats:
        raise CapsError("the table backend has no hidden states. Use --backend hf or native.")


class TableSession:
    """The reference `Session`: what it does is what the protocol means."""

    def __init__(self, model: TableModel, rows: list[list[int]], capacity: int) -> None:
        self.model = model
        self.capacity = capacity
        self._rows = rows
        self._last: tuple[Nodes, list[list[tuple[int, ...]]]] | None = None
        self.forwards = 0

    @property
    def vocab(self) -> int:
        return self.model.vocab

    @property
    def caps(self) -> Caps:
        return Caps(
            tree=True, crop=True, fork=True, embeds=False, hidden=False, layers=False, visible=False, recurrent=False,
            num_layers=0, max_width=256, context=self.capacity, chain_exact=Keeps.BITS, tree_exact=Keeps.BITS,
        )  # fmt: skip

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(len(r) for r in self._rows)

    def prefill(self, prompts: Sequence[Sequence[int]], *, last: bool = False) -> Floats | None:
        for b, ids in enumerate(prompts):
            self._grow(b, [int(i) for i in ids])
        self._last = None
        if not last:
            return None
        rows = [
            self.model.row(r) if ids else np.zeros(self.vocab, np.float32)
            for r, ids in zip(self._rows, prompts, strict=True)
        ]
        return np.stack(rows)

    def forward(self, nodes: Nodes, want: Want = Want()) -> TableStep:
        if nodes.embeds is not None or nodes.visible is not None or nodes.layers is not None or want.hidden:
            raise CapsError("the table backend runs plain token forests only. Use --backend hf or native.")
        self.forwards += 1
        batch, width = nodes.parents.shape
        out = np.full((batch, width, self.vocab), np.nan, np.float32)
        paths: list[list[tuple[int, ...]]] = []
        for b in range(batch):
            row: list[tuple[int, ...]] = []
            for w in range(width):
                parent = int(nodes.parents[b, w])
                if parent == PAD:
                    break
                if parent >= w:
                    raise ValueError(f"node {w} of row {b} stands before its parent {parent}")
                row.append((*(row[parent] if parent >= 0 else ()), int(nodes.tokens[b, w])))
                out[b, w] = self.model.row(self._rows[b] + list(row[w]))
            paths.append(row)
        self._last = (nodes, paths)
        return TableStep(out)

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        if self._last is None:
            raise ValueError("commit needs a forward before it")
        nodes, rows = self._last
        for b, path in enumerate(paths):
            for up, node in zip((-1, *path), path, strict=False):
                if int(nodes.parents[b, node]) != up:
                    raise ValueError(f"row {b}: {list(path)} is not a path from the root")
            if path:
                self._grow(b, list(rows[b][path[-1]]))
        self._last = None

    def crop(self, lengths: Sequence[int]) -> None:
        for b, (row, n) in enumerate(zip(self._rows, lengths, strict=True)):
            if not 0 <= n <= len(row):
                raise ValueError(f"row {b} holds {len(row)} tokens, so it cannot be cropped to {n}")
        self._rows = [r[:n] for r, n in zip(self._rows, lengths, strict=True)]
        self._last = None

    def fork(self, rows: Sequence[int]) -> "TableSession":
        return TableSession(self.model, [list(self._rows[r]) for r in rows], self.capacity)

    def embed(self, tokens: Ints) -> Floats:
        raise CapsError("the table backend has no embeddings. Use --backend hf or native.")

    def head(self, hidden: Floats) -> Floats:
        raise CapsError("the table backend has no output head. Use --backend hf or native.")

    def room(self) -> tuple[int, ...]:
        return tuple(self.capacity - len(r) for r in self._rows)

    def cache_bytes(self) -> dict[str, int]:
        return {}

    def _grow(self, row: int, ids: list[int]) -> None:
        if len(self._rows[row]) + len(ids) > self.capacity:
            raise PromptError(
                f"row {row} would hold {len(self._rows[row]) + len(ids)} tokens, its capacity is {self.capacity}"
            )
        for i in ids:
            if not 0 <= i < self.vocab:
                raise PromptError(f"token id {i} is outside the vocabulary of {self.vocab}")
        self._rows[row].extend(ids)


def load(spec: ModelSpec) -> TableModel:
    """`table:VOCAB:SEED[:ORDER]` as a model."""
    parts = spec.source.split(":")[1:] or ["32"]
    try:
        numbers = [int(p) for p in parts]
    except ValueError:
        raise ModelError(f"'{spec.source}' is no table model. Write table:VOCAB:SEED, such as table:32:0") from None
    numbers += [0] * (3 - len(numbers))
    return TableModel(vocab=numbers[0], seed=numbers[1], order=numbers[2])


def _expand(start: int, count: int) -> Floats:
    """`count` roughly normal numbers from a 64-bit start: the sum of four 16-bit fields of splitmix64, scaled once."""
    golden = 0x9E3779B97F4A7C15
    z = (np.arange(1, count + 1, dtype=np.uint64) * np.uint64(golden)) + np.uint64(start)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    fields = np.stack([(z >> np.uint64(s)) & np.uint64(0xFFFF) for s in (0, 16, 32, 48)]).astype(np.int64).sum(0)
    return ((fields - 131070) * (SHARPNESS / 37837.0)).astype(np.float32)
