"""A tier that holds more than it shows: at each seal point the newest queries choose which passages are seen next.

A passage ends at an end token, or where it is as long as it may be. It is found by the mean of its keys.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steno.core import CacheSpec, KVShape

from ._dense import DenseForm
from ._kept import ObservingTier, Shelf, Slots
from ._scene import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Passages:
    """Where passages end: at the ids `ends`, or after `longest` tokens; `budget` tokens are seen, `sinks` always."""

    ends: frozenset[int]
    longest: int
    budget: int
    sinks: int

    def cut(self, ids: Sequence[int], first: int, begun: int) -> list[int]:
        """Positions of the last tokens of passages among `ids`, which stand from `first` on; one began at `begun`."""
        out: list[int] = []
        for place, token in enumerate(ids, first):
            if token in self.ends or place - begun + 1 >= self.longest:
                out.append(place)
                begun = place + 1
        return out


class RecallTier(ObservingTier):
    """A `core.Reader`. Notes: the slots seen [G, m] of a layer; in layer 0 also where passages ended [e]."""

    def __init__(self, spec: CacheSpec, policy: Policy, pool: int, passages: Passages, shape: KVShape) -> None:
        super().__init__(spec, policy, [[Shelf(DenseForm(), pool)]] * shape.layers, shape)
        self.passages = passages
        self._ids: list[int] = []

    def read(self, row: int, ids: Tensor) -> None:
        self._ids = ids.tolist()

    def seal(self, row: int, layer: int, k: Tensor, v: Tensor) -> None:
        assert self._seen is not None
        q, start, tokens = self._seen[0], self._sealed[row], k.shape[1]
        ends = self.noted(row, 0).get("ends", torch.zeros(0, dtype=torch.int32, device=k.device))
        if layer == 0:
            begun = int(ends[-1]) + 1 if ends.numel() else 0
            new = self.passages.cut(self._ids[:tokens], start, begun)
            ends = torch.cat([ends, torch.tensor(new, dtype=torch.int32, device=k.device)])
        super().seal(row, layer, k, v)
        begun = int(ends[-1]) + 1 if ends.numel() else 0
        # What is being said: from where the last passage that is over, but for the newest token, ended.
        later = self.passages.cut(self._ids[tokens:-1], start + tokens, begun)
        since = max(0, (later[-1] + 1 if later else begun) - start)
        asked = q[:, since:].float().mean(1).unflatten(0, (k.shape[0], -1)).mean(1)
        chosen = self._choose(row, layer, asked, ends)
        self.note(row, layer, {"chosen": chosen, "ends": ends} if layer == 0 else {"chosen": chosen})

    def _choose(self, row: int, layer: int, asked: Tensor, ends: Tensor) -> Tensor:
        """Slots [G, m], in order, of the passages whose mean key looks most like what is asked for [G, D]."""
        held = self._rows[row][layer][0]
        keys, _ = self.shelves[layer][0].form.decode(held.parts)
        passage = torch.searchsorted(ends, held.positions.contiguous())
        count = len(ends) + 1
        total = keys.new_zeros(len(keys), count, keys.shape[2])
        total.scatter_add_(1, passage[..., None].expand(keys.shape), keys)
        number = keys.new_zeros(len(keys), count).scatter_add_(1, passage, torch.ones_like(keys[..., 0]))
        likeness = (total / number[..., None].clamp(min=1) * asked[:, None]).sum(-1)
        order = likeness.masked_fill(number == 0, -torch.inf).sort(dim=1, descending=True, stable=True).indices
        rank = torch.zeros_like(order).scatter_(1, order, torch.arange(count, device=order.device).expand_as(order))
        rank = rank.gather(1, passage).masked_fill(held.positions < self.passages.sinks, -1)
        best = rank.sort(dim=1, stable=True).indices[:, : self.passages.budget]
        return best.sort(1).values.to(torch.int32)

    def _pages(self, row: int, layer: int) -> Iterator[Slots]:
        for held in self._rows[row][layer]:
            seen = held.take(self.noted(row, layer)["chosen"].long())
            for start in range(0, seen.tokens, self.page_tokens):
                span = slice(start, start + self.page_tokens)
                k, v = self.shelves[layer][0].form.decode({name: part[:, span] for name, part in seen.parts.items()})
                yield Slots(k, v, seen.positions[:, span])
