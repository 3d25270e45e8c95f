"""Signed codes of 2, 3, 4 and 8 bits packed along the last axis into bytes, with no bit to spare.

Codes are two's complement, in [-2**(bits - 1), 2**(bits - 1)): an arithmetic shift unpacks them, centred on 0. The
layout is planar: of a row of n 2-bit codes, byte i holds codes i, i + n/4, i + n/2 and
i + 3n/4, so that unpacking writes whole runs. 3-bit codes are 8 to 3 bytes, 3.0 bits each: two planes of low bit pairs
and one of sign bits. A row is padded to whole bytes (3 bits: to a multiple of 8 codes).
"""

import torch
from torch import Tensor

BITS = (2, 3, 4, 8)


def width(count: int, bits: int) -> int:
    """Bytes that a row of `count` codes takes."""
    if bits == 3:
        return 3 * -(-count // 8)
    return -(-count * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """int8 codes [..., n] to int8 bytes [..., width(n, bits)]."""
    if bits == 8:
        return codes.clone(memory_format=torch.contiguous_format)
    if bits == 3:
        codes = _pad(codes, 8)
        return torch.cat([_fold(codes & 3, 2), _fold((codes >> 2) & 1, 1)], -1)
    return _fold(_pad(codes, 8 // bits) & (2**bits - 1), bits)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes of each row as float32 [..., count]: the inverse of `pack`."""
    if bits == 8:
        return packed.float()
    if bits == 3:
        third = packed.shape[-1] // 3
        codes = _spread(packed[..., : 2 * third], 2)
        # A pair comes back signed; its two bits are below the sign bit of the code.
        codes = codes.bitwise_and_(3).add_(_spread(packed[..., 2 * third :], 1), alpha=4)
    else:
        codes = _spread(packed, bits)
    return codes[..., :count].float()


def _pad(codes: Tensor, multiple: int) -> Tensor:
    short = -codes.shape[-1] % multiple
    return torch.nn.functional.pad(codes, (0, short)) if short else codes


def _fold(codes: Tensor, bits: int) -> Tensor:
    """Unsigned codes [..., n] to bytes [..., n * bits / 8]."""
    per = 8 // bits
    runs = codes.unflatten(-1, (per, codes.shape[-1] // per))
    out = runs[..., 0, :].clone(memory_format=torch.contiguous_format)
    for index in range(1, per):
        out |= runs[..., index, :] << bits * index
    return out


def _spread(packed: Tensor, bits: int) -> Tensor:
    """Bytes [..., n * bits / 8] to signed int8 codes [..., n]."""
    per = 8 // bits
    out = packed.new_empty(*packed.shape[:-1], per, packed.shape[-1])
    for index in range(per):
        out[..., index, :] = (packed << 8 - bits * (index + 1)) >> 8 - bits
    return out.flatten(-2)
