"""A model whose sessions keep a record of what the loop does to them: what it commits, and the logits it saw there."""

from collections.abc import Sequence

import numpy as np

from steno.core import CacheSpec, Model, Nodes, Session, Step, Want
from steno.core.through import ThroughModel, ThroughSession

from ._lab import Broken, Floats, lineage
from ._plain import Past


class Watched(ThroughModel):
    """`model`, watched. `ends` replaces its end tokens.

    seen  raw logits [V] at every committed node, by the past that ends with it
    """

    def __init__(self, model: Model, ends: frozenset[int] | None = None) -> None:
        super().__init__(model)
        self.ends = model.eos if ends is None else ends
        self.seen: dict[Past, Floats] = {}
        self.branching = 0

    @property
    def eos(self) -> frozenset[int]:
        return self.ends

    def open(self, batch: int, capacity: int, cache: CacheSpec | None = None) -> "WatchedSession":
        return WatchedSession(self, self.model.open(batch, capacity, cache), [[] for _ in range(batch)])


class WatchedSession(ThroughSession):
    """Passes every call on, and keeps the ids of every row beside it."""

    def __init__(self, owner: Watched, inner: Session, rows: list[list[int]]) -> None:
        super().__init__(inner)
        self.owner = owner
        self.rows = rows
        self._last: tuple[Nodes, Step | None] | None = None

    def prefill(self, prompts: Sequence[Sequence[int]], *, last: bool = False) -> Floats | None:
        out = self.inner.prefill(prompts, last=last)
        for row, ids in zip(self.rows, prompts, strict=True):
            row.extend(ids)
        self._agree("prefill")
        return out

    def forward(self, nodes: Nodes, want: Want = Want()) -> Step:
        step = self.inner.forward(nodes, want)
        # A prompt that is read in forwards asks for no logits, and there are none to look at, as in a prefill.
        self._last = nodes, step if want.logits else None
        return step

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        assert self._last is not None
        nodes, step = self._last
        logits = step.logits if step else None
        for b, path in enumerate(paths):
            parents = nodes.parents[b].tolist()
            if path and list(path) != lineage(parents, path[-1]):
                raise Broken(f"row {b}: the loop commits {list(path)}, which is no path from the pending token")
            if path and path[0] != 0:
                raise Broken(f"row {b}: the loop commits a path that leaves out the pending token, node 0")
            self.owner.branching += any(node != i for i, node in enumerate(path))
            for node in path:
                self.rows[b].append(int(nodes.tokens[b, node]))
                if logits is not None:
                    self.owner.seen[tuple(self.rows[b])] = np.array(logits[b, node])
        self.inner.commit(paths)
        self._agree("commit")

    def crop(self, lengths: Sequence[int]) -> None:
        super().crop(lengths)
        self.rows = [row[:n] for row, n in zip(self.rows, lengths, strict=True)]

    def fork(self, rows: Sequence[int]) -> "WatchedSession":
        return WatchedSession(self.owner, self.inner.fork(rows), [list(self.rows[r]) for r in rows])

    def _agree(self, call: str) -> None:
        want = tuple(map(len, self.rows))
        if self.inner.lengths != want:
            raise Broken(f"after {call} the session holds {self.inner.lengths} tokens, and was given {want}")
