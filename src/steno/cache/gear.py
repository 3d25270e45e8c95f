"""GEAR: quantise, then mend: a low-rank matrix for what the quantiser missed, a sparse one for the outliers.

GEAR: An Efficient KV Cache Compression Recipe for Near-Lossless Generative Inference of LLM. The largest and smallest
entries of each vector (key channels, value tokens) are taken out and kept as they are; the rest is quantised; what that
missed is nearly of low rank within a head, so a few power iterations find most of it. X ~ Q + A B^T, outliers put back.

What differs from the paper: the rank is the same in prefill and decoding, since a block must not know how it came; both
keys and values wait in the dense residual until a block is full (the paper's streaming buffer); outliers overwrite
rather than add, so they come back exactly (in float16).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from steno.core import Card, KVShape, OneOf, Span, Tier

from .base import BlockKnob

if TYPE_CHECKING:
    from torch import Tensor

    from ._grid import Grid, Parts

CARD = Card(
    paper="GEAR: An Efficient KV Cache Compression Recipefor Near-Lossless Generative Inference of LLM",
    keeps="near",
    breaks=("cache",),
    backends=("hf",),
    requires=("hf",),
)

LOOPS = 3
"""Power iterations; the last one is orthogonalised."""


@dataclass(frozen=True, kw_only=True)
class Gear(BlockKnob):
    """`rank` 0 and `outliers` 0 leave plain quantisation. `outliers` counts both ends of a vector together."""

    card: ClassVar[Card] = CARD
    points: ClassVar = (
        {"residual": 32},
        {"rank": 0, "residual": 32},
        {"outliers": 0, "residual": 32},
        {"key_bits": 4, "value_bits": 4, "rank": 2, "residual": 32},
    )

    key_bits: Annotated[int, OneOf(8, 4, 3, 2)] = 2
    value_bits: Annotated[int, OneOf(8, 4, 3, 2)] = 2
    rank: Annotated[int, Span(0, 16)] = 2
    outliers: Annotated[float, Span(0, 100, "percent")] = 4.0
    residual: Annotated[int, Span(0, 1 << 24, "tokens")] = 64
    block: Annotated[int, OneOf(32, 64, 128, 256)] = 64

    def open(self, shape: KVShape) -> Tier:
        from ._grid import BlockForm, Grid
        from ._paged import PagedTier

        grid = Grid(self.key_bits, self.value_bits, (self.block, shape.head_dim))
        return PagedTier(self, BlockForm(_GearCodec(self, grid, shape.head_dim), self.block), shape)


@dataclass(frozen=True, slots=True)
class _GearCodec:
    """Beside the parts of a grid: outliers and their places, [G, n, D, s] of keys and [G, n, T, s] of values; low-rank
    factors [G, n, T + D, r] of both, the token side first.
    """

    knob: Gear
    grid: "Grid"
    dim: int

    def encode(self, k: "Tensor", v: "Tensor") -> "Parts":
        from ._outliers import count, split

        ends = [count(self.knob.outliers / 2, n) for n in (self.knob.block, self.dim)]
        keys, key_outliers, key_places = split(k.mT, ends[0], ends[0])
        values, value_outliers, value_places = split(v, ends[1], ends[1])
        keys = keys.mT.contiguous()
        parts = self.grid.encode(keys, values)
        held_k, held_v = self.grid.decode(parts)
        return {
            **parts,
            "key_outliers": key_outliers, "key_places": key_places,
            "value_outliers": value_outliers, "value_places": value_places,
            "key_factors": low_rank(keys - held_k, self.knob.rank),
            "value_factors": low_rank(values - held_v, self.knob.rank),
        }  # fmt: skip

    def decode(self, parts: "Parts") -> "tuple[Tensor, Tensor]":
        from ._outliers import restore

        k, v = self.grid.decode(parts)
        sides = [self.knob.block, self.dim]
        k += _product(parts["key_factors"], sides)
        v += _product(parts["value_factors"], sides)
        keys = restore(k.mT, parts["key_outliers"], parts["key_places"]).mT
        return keys, restore(v, parts["value_outliers"], parts["value_places"])


def low_rank(x: "Tensor", rank: int) -> "Tensor":
    """float16 factors [..., T + D, rank] of x [..., T, D]: A above B, with A B^T near x."""
    import torch

    rank = min(rank, *x.shape[-2:])
    if not rank:
        return x.new_zeros(*x.shape[:-2], sum(x.shape[-2:]), 0, dtype=torch.half)
    b = torch.randn(x.shape[-1], rank, generator=torch.Generator().manual_seed(0)).to(x)
    a = x @ b
    for _ in range(LOOPS):
        a = torch.linalg.qr(a).Q
        b = x.mT @ a
        a = x @ b
    a = torch.linalg.qr(a).Q
    return torch.cat([a, x.mT @ a], -2).half()


def _product(factors: "Tensor", sides: list[int]) -> "Tensor":
    """A B^T, rank by rank: no bit depends on how many blocks are multiplied at once."""
    import torch

    a, b = (side.float().unbind(-1) for side in factors.split(sides, -2))
    out = torch.zeros(*factors.shape[:-2], *sides, device=factors.device)
    for row, column in zip(a, b, strict=True):
        out += row[..., :, None] * column[..., None, :]
    return out
