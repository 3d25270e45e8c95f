"""What a worker asks of an engine, and steno's own. Peers are in `engine_*.py`."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np


class Engine(Protocol):
    """A loaded model with rows of text. All rows hold the same ids; times are seconds of wall clock."""

    @property
    def weight_bytes(self) -> int: ...

    def open(self, rows: int, capacity: int) -> None:
        """Empty rows; those that were open before are closed."""
        ...

    def kv_bytes(self) -> int:
        """Bytes of keys and values that the open rows hold room for."""
        ...

    def prefill(self, ids: Sequence[int]) -> float:
        """Empty all rows and fill each with `ids`, the last token's logits included."""
        ...

    def crop(self, length: int) -> None:
        """Take all rows back to `length` tokens."""
        ...

    def decode(self, count: int) -> float:
        """Plain greedy decoding of `count` tokens per row."""
        ...

    def width(self, count: int) -> float:
        """One forward of a chain of `count` tokens in the first row, the best token of each read; nothing stays."""
        ...


class Steno:
    """The native engine through `Session`."""

    def __init__(self, folder: Path, form: str, threads: int) -> None:
        from steno.models.native import load

        self.model = load(folder, weights=form, threads=threads)
        self.version = "isa " + self.model.isa
        self._rows = 0

    @property
    def weight_bytes(self) -> int:
        return self.model.weight_bytes()

    def open(self, rows: int, capacity: int) -> None:
        from steno.core import Nodes

        self._nodes = Nodes
        self._rows = rows
        self._session = self.model.open(rows, capacity)
        self._token = np.zeros((rows, 1), np.int32)
        self._root = np.full((rows, 1), -1, np.int32)
        self._path = [[0] for _ in range(rows)]

    def kv_bytes(self) -> int:
        return sum(self._session.cache_bytes().values())

    def prefill(self, ids: Sequence[int]) -> float:
        self._session.crop([0] * self._rows)
        start = time.perf_counter()
        logits = self._session.prefill([list(ids)] * self._rows, last=True)
        assert logits is not None
        self._token = logits.argmax(axis=1).astype(np.int32)[:, None]
        return time.perf_counter() - start

    def crop(self, length: int) -> None:
        self._session.crop([length] * self._rows)

    def decode(self, count: int) -> float:
        session, token = self._session, self._token
        start = time.perf_counter()
        for _ in range(count):
            token = session.forward(self._nodes(tokens=token, parents=self._root)).argmax
            session.commit(self._path)
        return time.perf_counter() - start

    def width(self, count: int) -> float:
        tokens = np.arange(300, 300 + count, dtype=np.int32)[None]
        parents = np.arange(-1, count - 1, dtype=np.int32)[None]
        start = time.perf_counter()
        _ = self._session.forward(self._nodes(tokens=tokens, parents=parents)).argmax
        return time.perf_counter() - start

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """[T, V] of a prompt, to compare engines."""
        self.open(1, len(ids) + 1)
        out = []
        for i in range(0, len(ids), 32):
            part = np.array([ids[i : i + 32]], np.int32)
            width = part.shape[1]
            step = self._session.forward(
                self._nodes(tokens=part, parents=np.arange(-1, width - 1, dtype=np.int32)[None])
            )
            out.append(step.logits[0].copy())
            self._session.commit([list(range(width))])
        return np.concatenate(out)
