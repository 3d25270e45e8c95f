"""Tokens stored one by one, so that any of them can be kept and any dropped: groups of channels on affine grids."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ._pack import pack, unpack
from ._quant import dequantise, quantise

Parts = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class TokenForm:
    """A `_paged.Form` of unit 1: codes [G, T, bytes] and (scale, zero) [G, T, groups, 2] of keys and of values."""

    key_bits: int
    value_bits: int
    group: int
    dim: int
    unit: int = 1

    def keeps(self, sealed: int) -> int:
        return sealed

    def encode(self, k: Tensor, v: Tensor) -> Parts:
        keys, key_scales = self._encode(k, self.key_bits)
        values, value_scales = self._encode(v, self.value_bits)
        return {"keys": keys, "key_scales": key_scales, "values": values, "value_scales": value_scales}

    def decode(self, parts: Parts) -> tuple[Tensor, Tensor]:
        k = self._decode(parts["keys"], parts["key_scales"], self.key_bits)
        return k, self._decode(parts["values"], parts["value_scales"], self.value_bits)

    def _encode(self, x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        codes, scale, zero = quantise(x.unflatten(2, (-1, self.group)), bits, 3)
        return pack(codes.flatten(2), bits), torch.cat([scale, zero], 3)

    def _decode(self, packed: Tensor, scales: Tensor, bits: int) -> Tensor:
        codes = unpack(packed, bits, self.dim).unflatten(2, (-1, self.group))
        scale, zero = scales.split(1, 3)
        return dequantise(codes, scale, zero, bits).flatten(2)


def fit_group(group: int, dim: int) -> int:
    """The widest group of at most `group` channels that divides `dim`."""
    return max(size for size in range(1, min(group, dim) + 1) if dim % size == 0)
