"""Models whose rows can be stored, for the tests of what is stored: the engine, and transformers in pinned shapes."""

import sys
from pathlib import Path

import numpy as np

from steno.core import Keeper, Model, Nodes
from steno.models import ModelSpec, load

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

import native_tiny
import tiny

VOCAB = tiny.VOCAB


def engine(folder: Path, name: str = "llama") -> Model:
    native_tiny.make(name, folder / name)
    return load(ModelSpec(source=str(folder / name), backend="native", weights="fp32", threads=2))


def pinned(folder: Path, name: str = "llama") -> Model:
    made = tiny.make(name, folder / name)
    return load(ModelSpec(source=str(made), backend="hf", pinned=True, width=8, threads=1))


def opened(model: Model, form=None, batch: int = 2, capacity: int = 160) -> Keeper:
    session = model.open(batch, capacity, form)
    assert isinstance(session, Keeper)
    return session


def text(count: int, salt: int = 0) -> list[int]:
    return [int(i) for i in np.random.default_rng([11, salt]).integers(3, VOCAB, count)]


def chain(session, rows) -> np.ndarray:
    """Logits [B, W, V] of chains behind the rows."""
    width = max(map(len, rows))
    tokens = np.zeros((len(rows), width), np.int32)
    parents = np.full((len(rows), width), -2, np.int32)
    for b, row in enumerate(rows):
        tokens[b, : len(row)] = row
        parents[b, : len(row)] = np.arange(-1, len(row) - 1)
    return np.array(session.forward(Nodes(tokens=tokens, parents=parents)).logits)


def same(got, want) -> None:
    np.testing.assert_array_equal(np.asarray(got).view(np.uint32), np.asarray(want).view(np.uint32))
