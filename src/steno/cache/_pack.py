"""Codes of 2, 3, 4 and 8 bits packed along the last axis into bytes, with no bit to spare.

The layout is planar: byte i of a row of n codes holds codes i, i + n/4, i + n/2, ... (2 bits), so that unpacking writes
whole runs. 3-bit codes are 8 to 3 bytes: two bytes of low bit pairs, then one byte of high bits. A row is padded to a
whole number of bytes (3 bits: to a multiple of 8 codes); every usual head width needs no padding.
"""

import torch
from torch import Tensor

BITS = (2, 3, 4, 8)


def width(count: int, bits: int) -> int:
    """Bytes that `count` codes take."""
    if bits == 3:
        return 3 * -(-count // 8)
    return -(-count * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """[..., n] uint8 codes below 2**bits to [..., width(n, bits)] uint8."""
    if bits == 8:
        return codes.clone(memory_format=torch.contiguous_format)
    if bits == 3:
        codes = _pad(codes, 8)
        return torch.cat([_planes(codes & 3, 2), _planes(codes >> 2, 1)], -1)
    return _planes(_pad(codes, 8 // bits), bits)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes of each row as float32 [..., count]; the inverse of `pack`."""
    if bits == 8:
        return packed.float()
    if bits == 3:
        third = packed.shape[-1] // 3
        low, high = packed[..., : 2 * third], packed[..., 2 * third :]
        return _spread(low, 2).add_(_spread(high, 1), alpha=4.0)[..., :count]
    return _spread(packed, bits)[..., :count]


def _pad(codes: Tensor, multiple: int) -> Tensor:
    short = -codes.shape[-1] % multiple
    return torch.nn.functional.pad(codes, (0, short)) if short else codes


def _planes(codes: Tensor, bits: int) -> Tensor:
    per = 8 // bits
    runs = codes.unflatten(-1, (per, codes.shape[-1] // per))
    out = runs[..., 0, :].clone(memory_format=torch.contiguous_format)
    for index in range(1, per):
        out |= runs[..., index, :] << bits * index
    return out


def _spread(packed: Tensor, bits: int) -> Tensor:
    per, mask = 8 // bits, 2**bits - 1
    out = torch.empty(*packed.shape[:-1], per, packed.shape[-1], dtype=torch.float32, device=packed.device)
    for index in range(per):
        out[..., index, :] = (packed >> bits * index) & mask
    return out.flatten(-2)
