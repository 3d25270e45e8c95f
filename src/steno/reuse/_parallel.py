"""Contexts side by side: a tier of texts that were computed apart and stand at the same positions.

A shared prefix stands at [0, P). Every context follows it at [P, P + its length), as if the others were not there, and
what is decoded comes behind the longest of them. A query merges the prefix and the contexts by their log-sum-exp; how
the contexts weigh in is the method's own (`Mix`).
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from steno.cache._lse import Part, attend, merge
from steno.core import CacheSpec, Keeper, KVShape, Model, Stretch, Tier
from steno.core.errors import CapsError, DataError

from ._move import check, keeper, move, place
from .base import Floats, Piece, Woven


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """How contexts weigh in.

    temperature  scores of contexts are divided by it
    scale        of the log-sum-exp that contexts reach together, beside the temperature
    select       contexts a query looks at, head by head: those of the largest log-sum-exp; 0: all
    """

    temperature: float = 1.0
    scale: float = 1.0
    select: int = 0


@dataclass(frozen=True, slots=True)
class ParallelForm:
    """A `core.CacheSpec` whose rows begin with `length` positions of prefix and contexts."""

    length: int
    mix: Mix

    def due(self, length: int) -> int:
        return min(length, self.length)

    def sees(self, query: Tensor, key: Tensor) -> None:
        return None

    def open(self, shape: KVShape) -> Tier:
        return ParallelTier(self, shape)

    def layout(self, head_dim: int) -> None:
        return None


class Beside(NamedTuple):
    """A row: positions sealed, and for prefix and contexts in turn k and v of all layers, [L, 2, G, T, D]."""

    sealed: int
    parts: tuple[Tensor, ...]


class ParallelTier:
    """A `core.Storable`: part 0 is the prefix, what else there is are contexts."""

    def __init__(self, spec: ParallelForm, shape: KVShape) -> None:
        self.spec, self.shape = spec, shape
        self._rows = [Beside(0, ())] * shape.batch
        self._coming: list[Tensor] = []

    @property
    def sealed(self) -> tuple[int, ...]:
        return tuple(row.sealed for row in self._rows)

    def seal(self, row: int, layer: int, k: Tensor, v: Tensor) -> None:
        """Tokens that a session hands over lengthen the prefix: it computed them behind nothing else."""
        self._coming = [] if layer == 0 else self._coming
        self._coming.append(torch.stack([k, v]))
        if layer == self.shape.layers - 1:
            new, held = torch.stack(self._coming), self._rows[row]
            parts = (torch.cat([held.parts[0], new], 3), *held.parts[1:]) if held.parts else (new,)
            self._rows[row] = Beside(held.sealed + k.shape[1], parts)

    def attend(self, layer: int, q: Tensor, positions: Tensor, scale: float) -> Part:
        out = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
        lse = torch.full(q.shape[:-1], -torch.inf, dtype=torch.float32, device=q.device)
        mix = self.spec.mix
        for row, held in enumerate(self._rows):
            if not held.sealed:
                continue
            grouped = q[row].float().mul(scale).reshape(self.shape.key_heads, -1, q.shape[-1])
            pairs = [part[layer].float() for part in held.parts]
            done = [attend(grouped, *pairs[0])] if pairs[0].shape[2] else []
            apart = [attend(grouped / mix.temperature, *pair) for pair in pairs[1:]]
            if mix.select and len(apart) > mix.select:
                apart = best(apart, mix.select)
            if apart:
                together, reach = merge(apart)
                done.append((together, reach * (mix.scale * mix.temperature)))
            part = merge(done)
            out[row], lse[row] = part[0].view(q.shape[1:]), part[1].view(q.shape[1:-1])
        return out, lse

    def materialise(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Positions stand by head, since several tokens share one: no single mask is right for them."""
        most = max((sum(part.shape[3] for part in row.parts) for row in self._rows), default=0)
        size = (self.shape.batch, self.shape.key_heads, most)
        k, v = torch.zeros(2, *size, self.shape.head_dim, device=self.shape.device).unbind(0)
        where = torch.full(size, -1, device=self.shape.device)
        for row, held in enumerate(self._rows):
            start, prefix = 0, held.parts[0].shape[3] if held.parts else 0
            for number, part in enumerate(held.parts):
                end, first = start + part.shape[3], prefix if number else 0
                k[row, :, start:end], v[row, :, start:end] = part[layer].float().unbind(0)
                where[row, :, start:end] = torch.arange(first, first + end - start, device=where.device)
                start = end
        return k, v, where

    def crop(self, row: int, length: int) -> None:
        if length == 0:
            self._rows[row] = Beside(0, ())
        elif length < self._rows[row].sealed:
            raise CapsError(f"row {row} cannot be taken back to {length} tokens: its contexts stand side by side")

    def fork(self, rows: Sequence[int]) -> "ParallelTier":
        out = copy(self)
        out.shape = replace(self.shape, batch=len(rows))
        out._rows = [self._rows[row] for row in rows]
        return out

    def storages(self) -> dict[str, list[Tensor]]:
        parts = {id(part): part for row in self._rows for part in row.parts}
        return {"payload": list(parts.values())}

    def state(self) -> tuple[dict[str, Tensor], Mapping[str, object]]:
        tensors = {f"{row}.{i}": part for row, held in enumerate(self._rows) for i, part in enumerate(held.parts)}
        return tensors, {"sealed": list(self.sealed), "parts": [len(row.parts) for row in self._rows]}

    def load(self, tensors: dict[str, Tensor], meta: Mapping[str, object]) -> None:
        sealed, counts = cast(list[int], meta["sealed"]), cast(list[int], meta["parts"])
        shape = (self.shape.layers, 2, self.shape.key_heads, self.shape.head_dim)
        rows = [
            Beside(sealed[row], tuple(tensors[f"{row}.{i}"] for i in range(count))) for row, count in enumerate(counts)
        ]
        found = {(*part.shape[:3], part.shape[4]) for row in rows for part in row.parts}
        if len(rows) != self.shape.batch or found - {shape}:
            raise DataError(f"the stored contexts are of shape {sorted(found)}, and the session's {shape}")
        self._rows = rows

    def adopt(self, row: int, other: Tier) -> None:
        assert isinstance(other, ParallelTier)
        self._rows[row] = other._rows[0]


def best(parts: Sequence[Part], count: int) -> list[Part]:
    """The parts with all but the `count` of the largest log-sum-exp shut out, query by query; ties go to the first."""
    lse = torch.stack([part[1] for part in parts])
    rank = lse.sort(dim=0, descending=True, stable=True).indices.argsort(0)
    return [(out, reach.masked_fill(rank[i] >= count, -torch.inf)) for i, (out, reach) in enumerate(parts)]


def beside(model: Model, pieces: Sequence[Piece], mix: Mix, capacity: int, form: CacheSpec | None) -> Woven:
    """A row whose first piece is the prefix of all the others, which are contexts."""
    check(pieces)
    if form is not None:
        raise CapsError("contexts side by side are kept as they were computed, so they take no cache form. Give none.")
    prefix, contexts = pieces[0], [piece for piece in pieces[1:] if piece.tokens]
    start = len(prefix.tokens)
    length = start + max((len(piece.tokens) for piece in contexts), default=0)
    session = keeper(model, capacity, ParallelForm(length, mix))
    alone = keeper(model, length, None)
    if prefix.known is None:
        alone.prefill([list(prefix.tokens)])
    else:
        place(alone, prefix)
    first = alone.read(0)
    computed = iter(_apart(alone, [piece for piece in contexts if piece.known is None], start))
    parts = [first, *(next(computed) if p.known is None else move(p, start, alone.rope) for p in contexts)]
    fill(session, parts, length)
    reused = sum(len(piece.tokens) for piece in (prefix, *contexts) if piece.known is not None)
    return Woven(session, sum(len(piece.tokens) for piece in (prefix, *contexts)) - reused, reused)


def fill(session: Keeper, parts: Sequence[tuple[Floats, Floats]], length: int) -> None:
    """Make an empty row of a session in a `ParallelForm` hold prefix and contexts, and be `length` tokens long."""
    tensors = {f"tier.0.{i}": np.stack(part, 1) for i, part in enumerate(parts)}
    # What an empty row of this session is, and a tier put into it.
    empty = session.save(0)
    meta = {**empty.meta, "sealed": length, "tier": {"sealed": [length], "parts": [len(parts)]}}
    arrays = {**{n: a for n, a in empty.arrays.items() if not n.startswith("tier.")}, **tensors}
    session.load(0, Stretch(start=0, stop=length, arrays=arrays, meta=meta))


def _apart(alone: Keeper, pieces: Sequence[Piece], start: int) -> list[tuple[Floats, Floats]]:
    """Keys and values of contexts, each computed right behind the prefix that `alone` holds."""
    if not pieces:
        return []
    rows = cast(Keeper, alone.fork([0] * len(pieces)))
    rows.prefill([list(piece.tokens) for piece in pieces])
    return [rows.read(row, start) for row in range(len(pieces))]
