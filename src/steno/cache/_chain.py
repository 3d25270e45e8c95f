"""Layers coded by what the layer below does not already tell: residuals of linear predictions, in the best levels.

Everything is predicted from what a reader has too: reconstructions, never originals. So decoding repeats the encoder's
numbers, bit for bit.
"""

from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor

from ._hadamard import hadamard
from ._normal import levels
from ._pack import pack, unpack, width
from ._quant import half

Parts = dict[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Predictor:
    """Linear maps with a bias in their last row: keys [C + 1, C] from the keys below; values [2 C + 1, C] from the keys
    of the same layer and the values below.
    """

    keys: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True)
class Normal:
    """A quantiser of vectors [..., C]: turned by a Hadamard matrix, in runs of a power of two, each run by its length.

    A turned vector looks normal whatever it was, so the best levels for a normal law are best.
    """

    bits: int
    channels: int

    @property
    def run(self) -> int:
        return gcd(self.channels, 1024)

    @property
    def bytes(self) -> int:
        """Of the codes of a vector."""
        return width(self.channels, self.bits)

    @property
    def runs(self) -> int:
        return self.channels // self.run

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(codes [..., bytes], root mean square of each run [..., runs])."""
        runs = hadamard(x.unflatten(-1, (-1, self.run)))
        scale = half(runs.square().mean(-1).sqrt())
        table = levels(self.bits).to(x.device)
        unit = runs / scale.float().masked_fill(scale == 0, 1.0)[..., None]
        codes = torch.bucketize(unit.contiguous(), (table[1:] + table[:-1]) / 2) - 2 ** (self.bits - 1)
        return pack(codes.to(torch.int8).flatten(-2), self.bits), scale

    def decode(self, codes: Tensor, scale: Tensor) -> Tensor:
        table = levels(self.bits).to(codes.device)
        number = unpack(codes, self.bits, self.channels).long() + 2 ** (self.bits - 1)
        return hadamard(table[number].unflatten(-1, (-1, self.run)) * scale.float()[..., None]).flatten(-2)


@dataclass(slots=True)
class Shared:
    """What the codec of one layer leaves to that of the next: `below` the layer `layer`, as read from `codes`.

    A forward reads the layers in turn, so one page goes through the depth once; nothing is left behind the last layer.
    """

    codes: Tensor | None = None
    layer: int = -1
    below: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ChainCodec:
    """A `_grid.Codec` of all layers together, which decodes into layer `layer`.

    Parts, of keys and of values: codes [1, n, T, bytes] and scales [1, n, T, runs], layer beside layer.
    """

    normals: tuple[Normal, ...]
    predictors: tuple[Predictor, ...]
    groups: int
    layer: int
    shared: Shared

    def encode(self, k: Tensor, v: Tensor) -> Parts:
        keys, values = (x[:, 0].float().unflatten(0, (-1, self.groups)).movedim(1, 2).flatten(2) for x in (k, v))
        out: dict[str, list[Tensor]] = {"keys": [], "key_scales": [], "values": [], "value_scales": []}
        below: tuple[Tensor, Tensor] | None = None
        for layer, normal in enumerate(self.normals):
            near = self._predict_keys(layer, below, keys[layer])
            codes, scales = normal.encode(keys[layer] - near)
            held_k = near + normal.decode(codes, scales)
            out["keys"].append(codes)
            out["key_scales"].append(scales)
            near = self._predict_values(layer, held_k, below)
            codes, scales = normal.encode(values[layer] - near)
            below = held_k, near + normal.decode(codes, scales)
            out["values"].append(codes)
            out["value_scales"].append(scales)
        return {name: torch.cat(parts, -1)[None, None] for name, parts in out.items()}

    def decode(self, parts: Parts) -> tuple[Tensor, Tensor]:
        shared, codes = self.shared, parts["keys"]
        known = shared.codes is codes and shared.layer == self.layer - 1
        read = {name: part[0] for name, part in parts.items()}
        below = self._read(read, shared.below if known else None)
        over = self.layer == len(self.normals) - 1
        shared.codes, shared.layer, shared.below = (None, -1, None) if over else (codes, self.layer, below)
        k, v = (x.unflatten(2, (self.groups, -1)).movedim(2, 0) for x in below)
        return k, v

    def _read(self, parts: Parts, below: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """Keys and values [n, T, C] of this codec's layer, from those `below`; None: from all layers below, anew."""
        sizes, runs = [n.bytes for n in self.normals], [n.runs for n in self.normals]
        keys, values = parts["keys"].split(sizes, -1), parts["values"].split(sizes, -1)
        key_scales, value_scales = parts["key_scales"].split(runs, -1), parts["value_scales"].split(runs, -1)
        for layer in range(self.layer if below else 0, self.layer + 1):
            normal = self.normals[layer]
            k = normal.decode(keys[layer], key_scales[layer])
            k = self._predict_keys(layer, below, k) + k
            v = normal.decode(values[layer], value_scales[layer])
            below = k, self._predict_values(layer, k, below) + v
        assert below is not None
        return below

    def _predict_keys(self, layer: int, below: tuple[Tensor, Tensor] | None, like: Tensor) -> Tensor:
        if below is None or not self.predictors:
            return torch.zeros_like(like)
        return affine(below[0], self.predictors[layer - 1].keys)

    def _predict_values(self, layer: int, keys: Tensor, below: tuple[Tensor, Tensor] | None) -> Tensor:
        if below is None or not self.predictors:
            return torch.zeros_like(keys)
        return affine(torch.cat([keys, below[1]], -1), self.predictors[layer - 1].values)


def affine(x: Tensor, table: Tensor) -> Tensor:
    """x [..., T, N] through `table` [N + 1, C], whose last row is the bias."""
    if x.ndim > 2:
        # Block by block: no bit depends on how many blocks are read at once.
        return torch.stack([affine(block, table) for block in x])
    return x @ table[:-1].float() + table[-1].float()


def ridge(x: Tensor, y: Tensor, damp: float = 1e-3) -> Tensor:
    """The table [N + 1, C] in float16 that brings x [T, N] nearest to y [T, C], damped by a share of its square."""
    wide = torch.cat([x, torch.ones_like(x[:, :1])], 1).double()
    gram = wide.T @ wide
    gram += damp * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram, wide.T @ y.double()).half()
