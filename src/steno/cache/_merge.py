"""Tokens that fall are merged into those that stay: a slot then holds the mean of its tokens, and counts so often."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from steno.core import CacheSpec, KVShape

from ._dense import DenseForm
from ._kept import Held, ObservingTier, Shelf, take
from ._ranks import Observed, Received


class Bag(NamedTuple):
    """Slots: k, v [G, S, D] in float32, the tokens each stands for [G, S], the attention it has had [G, S]."""

    k: Tensor
    v: Tensor
    counts: Tensor
    had: Tensor

    def take(self, index: Tensor) -> "Bag":
        return Bag(*(take(x, index) for x in self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`budget` slots stay. Of the rest those that score `floor` times their head's mean join the stayer whose key is
    most like theirs, where the cosine is above `similarity`.
    """

    budget: int
    similarity: float
    floor: float


class MergingTier(ObservingTier):
    """One dense shelf whose slots have counts; `ranks` hold the attention they have had."""

    def __init__(self, spec: CacheSpec, local: Observed, rule: Rule, shape: KVShape) -> None:
        super().__init__(spec, Received(), [[Shelf(DenseForm(), rule.budget)]] * shape.layers, shape)
        self.local, self.rule = local, rule

    def seal(self, row: int, layer: int, k: Tensor, v: Tensor) -> None:
        scene, old = self._scene(row, layer, k, v)
        held = self._rows[row][layer]
        had, now = self.policy.rank(scene), self.local.rank(scene)
        # Sums over many queries and means over few are brought to one scale.
        scores = torch.maximum(had * (now.sum(1, keepdim=True) / had.sum(1, keepdim=True)), now)
        counts = [h.parts["counts"] for h in held] + [torch.ones_like(scene.positions[:, -k.shape[1] :])]
        values = torch.cat([*(pair[1] for pair in old), v.float()], 1)
        bag, where = Bag(scene.keys, values, torch.cat(counts, 1), had), scene.positions
        if where.shape[1] > self.rule.budget:
            bag, stay = fold(bag, scores, self.rule)
            where = where.gather(1, stay)
        parts = {"payload": torch.stack([bag.k, bag.v], 2).to(k.dtype), "counts": bag.counts}
        self._rows[row][layer] = (Held(where, bag.had, parts),)
        self._advance(row, layer, k.shape[1])


def fold(bag: Bag, scores: Tensor, rule: Rule) -> tuple[Bag, Tensor]:
    """(the `budget` best of `scores` with what joined them, their places [G, budget]); of equals the older stay."""
    order = scores.sort(dim=1, descending=True, stable=True).indices
    stay, leave = order[:, : rule.budget].sort(1).values, order[:, rule.budget :].sort(1).values
    into, rest = bag.take(stay), bag.take(leave)
    likeness, target = (normalize(rest.k, dim=-1) @ normalize(into.k, dim=-1).mT).max(-1)
    joins = (likeness > rule.similarity) & (scores.gather(1, leave) >= rule.floor * scores.mean(1, keepdim=True))
    number = rest.counts * joins
    counts = into.counts.scatter_add(1, target, number)
    wide = target[..., None].expand(rest.k.shape)
    k, v = (
        (a * into.counts[..., None]).scatter_add(1, wide, b * number[..., None]) / counts[..., None]
        for a, b in ((into.k, rest.k), (into.v, rest.v))
    )
    return Bag(k, v, counts, into.had.scatter_add(1, target, rest.had * joins)), stay
