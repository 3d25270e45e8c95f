"""A tier whose key heads are divided among tiers of their own, so that heads may hold different numbers of tokens.

Each layer is divided its own way; a part sees a model of one layer that has its heads only. What a part keeps, and what
it costs, is its own affair.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol, TypedDict

import torch
from torch import Tensor

from steno.core import KVShape, Tier

from ._lse import Part as Answer


class Stored(Tier, Protocol):
    """What the tiers of this room have beyond the protocol."""

    page_tokens: int

    def fork(self, rows: Sequence[int]) -> "Stored": ...
    def counted(self, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...
    def state(self) -> tuple[dict[str, Tensor], object]: ...
    def load(self, tensors: dict[str, Tensor], meta: object) -> None: ...
    def adopt(self, row: int, other: Tier) -> None: ...


class Part(NamedTuple):
    """Key heads of one layer, in their order, and the tier that holds them."""

    heads: tuple[int, ...]
    tier: Stored


class Meta(TypedDict):
    """The parts' own, by layer."""

    parts: list[list[object]]


class HeadsTier:
    """A `core.Tier`; `divide` gives the parts of a layer from a function that shapes a part for its heads."""

    def __init__(
        self, shape: KVShape, divide: Callable[[int, Callable[[Sequence[int]], KVShape]], Sequence[Part]]
    ) -> None:
        self.shape = shape
        self.share = shape.query_heads // shape.key_heads

        def only(heads: Sequence[int]) -> KVShape:
            return replace(shape, layers=1, key_heads=len(heads), query_heads=self.share * len(heads))

        self.layers = [list(divide(layer, only)) for layer in range(shape.layers)]
        self.page_tokens = max(part.tier.page_tokens for layer in self.layers for part in layer)

    @property
    def sealed(self) -> tuple[int, ...]:
        return self.layers[-1][0].tier.sealed

    def seal(self, row: int, layer: int, k: Tensor, v: Tensor) -> None:
        for heads, tier in self.layers[layer]:
            tier.seal(row, 0, k[list(heads)], v[list(heads)])

    def attend(self, layer: int, q: Tensor, positions: Tensor, scale: float) -> Answer:
        out = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
        lse = torch.full(q.shape[:-1], -torch.inf, dtype=torch.float32, device=q.device)
        for heads, tier in self.layers[layer]:
            ours = [head * self.share + i for head in heads for i in range(self.share)]
            out[:, ours], lse[:, ours] = tier.attend(0, q[:, ours], positions, scale)
        return out, lse

    def materialise(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.counted(layer)[:3]

    def counted(self, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What `materialise` gives, and the logarithm of how often each slot counts [B, G, S]."""
        found = [(list(part.heads), part.tier.counted(0)) for part in self.layers[layer]]
        shape = (self.shape.batch, self.shape.key_heads, max(held[2].shape[2] for _, held in found))
        k, v = torch.zeros(2, *shape, self.shape.head_dim, device=self.shape.device).unbind(0)
        where = torch.full(shape, -1, device=self.shape.device)
        log_counts = torch.zeros(shape, device=self.shape.device)
        for heads, held in found:
            for whole, part in zip((k, v, where, log_counts), held, strict=True):
                whole[:, heads, : part.shape[2]] = part.to(whole.dtype)
        return k, v, where, log_counts

    def crop(self, row: int, length: int) -> None:
        for layer in self.layers:
            for part in layer:
                part.tier.crop(row, length)

    def fork(self, rows: Sequence[int]) -> "HeadsTier":
        forked = [[Part(heads, tier.fork(rows)) for heads, tier in layer] for layer in self.layers]
        return HeadsTier(replace(self.shape, batch=len(rows)), lambda layer, _: forked[layer])

    def storages(self) -> dict[str, list[Tensor]]:
        found: dict[str, list[Tensor]] = {}
        for layer in self.layers:
            for part in layer:
                for name, tensors in part.tier.storages().items():
                    found.setdefault(name, []).extend(tensors)
        return found

    def state(self) -> tuple[dict[str, Tensor], Meta]:
        """(tensors, meta) from which `load` makes an equal tier."""
        tensors: dict[str, Tensor] = {}
        meta = Meta(parts=[[] for _ in self.layers])
        for number, layer in enumerate(self.layers):
            for index, part in enumerate(layer):
                own, told = part.tier.state()
                tensors |= {f"{number}.{index}.{name}": tensor for name, tensor in own.items()}
                meta["parts"][number].append(told)
        return tensors, meta

    def adopt(self, row: int, other: Tier) -> None:
        assert isinstance(other, HeadsTier)
        for ours, theirs in zip(self.layers, other.layers, strict=True):
            for one, two in zip(ours, theirs, strict=True):
                one.tier.adopt(row, two.tier)

    def load(self, tensors: dict[str, Tensor], meta: Meta) -> None:
        """Take over the `state` of a tier of this form. Raises DataError where it has another shape."""
        for number, layer in enumerate(self.layers):
            for index, part in enumerate(layer):
                mark = f"{number}.{index}."
                own = {name.removeprefix(mark): tensor for name, tensor in tensors.items() if name.startswith(mark)}
                part.tier.load(own, meta["parts"][number][index])
