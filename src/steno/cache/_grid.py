"""Blocks of tokens on affine grids: the quantiser of several forms, and the frame for forms that work block by block.

A block is [G, n, T, D] with n = 1 when it is encoded. It is encoded by itself, in one shape whatever came with it, so
that a sum in it has one order and its bits depend on its tokens alone.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ._pack import pack, unpack
from ._quant import dequantise, quantise

Parts = dict[str, Tensor]


def encode_grid(x: Tensor, bits: int, dim: int) -> tuple[Tensor, Tensor]:
    """(packed codes [G, n, bytes], scales) of x [G, n, A, C], a range along `dim` (2 or 3).

    Scales keep that axis, with size 2: scale and zero.
    """
    codes, scale, zero = quantise(x, bits, dim)
    return pack(codes.flatten(2), bits), torch.cat([scale, zero], dim)


def decode_grid(packed: Tensor, scales: Tensor, bits: int, shape: tuple[int, int], dim: int) -> Tensor:
    """x [G, n, A, C] in float32, with `shape` = (A, C)."""
    codes = unpack(packed, bits, shape[0] * shape[1]).unflatten(2, shape)
    scale, zero = scales.split(1, dim)
    return dequantise(codes, scale, zero, bits)


class Codec(Protocol):
    """How blocks are stored."""

    def encode(self, k: Tensor, v: Tensor) -> Parts:
        """Parts of one block, k, v [G, 1, T, D]; every part has its blocks on axis 1."""
        ...

    def decode(self, parts: Parts) -> tuple[Tensor, Tensor]:
        """k, v [G, n, T, D] in float32."""
        ...


@dataclass(frozen=True, slots=True)
class BlockForm:
    """A `_paged.Form` of blocks of `unit` tokens in a codec."""

    codec: Codec
    unit: int

    def keeps(self, sealed: int) -> int:
        return sealed

    def encode(self, k: Tensor, v: Tensor) -> Parts:
        # Contiguous: a sum must not go by the strides of the buffer that it was cut from.
        pairs = zip(k.unflatten(1, (-1, self.unit)).unbind(1), v.unflatten(1, (-1, self.unit)).unbind(1), strict=True)
        blocks = [self.codec.encode(a.contiguous()[:, None], b.contiguous()[:, None]) for a, b in pairs]
        return {name: torch.cat([block[name] for block in blocks], 1) for name in blocks[0]}

    def decode(self, parts: Parts) -> tuple[Tensor, Tensor]:
        k, v = self.codec.decode(parts)
        return k.flatten(1, 2), v.flatten(1, 2)


@dataclass(frozen=True, slots=True)
class Grid:
    """A codec: keys per channel over a block of `shape` = (T, D), values per token over all channels."""

    key_bits: int
    value_bits: int
    shape: tuple[int, int]

    def encode(self, k: Tensor, v: Tensor) -> Parts:
        keys, key_scales = encode_grid(k, self.key_bits, 2)
        values, value_scales = encode_grid(v, self.value_bits, 3)
        return {"keys": keys, "key_scales": key_scales, "values": values, "value_scales": value_scales}

    def decode(self, parts: Parts) -> tuple[Tensor, Tensor]:
        k = decode_grid(parts["keys"], parts["key_scales"], self.key_bits, self.shape, 2)
        return k, decode_grid(parts["values"], parts["value_scales"], self.value_bits, self.shape, 3)
