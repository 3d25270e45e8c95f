"""Numbers of less than two bits: eight yes-or-no to a byte, five of -1, 0, 1 to a byte (3**5 = 243)."""

import torch
from torch import Tensor

PER_BYTE = 5
POWERS = (1, 3, 9, 27, 81)


def pack_bits(x: Tensor) -> Tensor:
    """bool [..., n] to uint8 [..., ceil(n / 8)]."""
    x = torch.nn.functional.pad(x.to(torch.uint8), (0, -x.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (x << torch.arange(8, dtype=torch.uint8, device=x.device)).sum(-1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, count: int) -> Tensor:
    """The first `count` bool of each row: the inverse of `pack_bits`."""
    bits = packed[..., None] >> torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (bits & 1).flatten(-2)[..., :count].bool()


def pack_trits(x: Tensor) -> Tensor:
    """int8 [..., n] of -1, 0 and 1 to uint8 [..., ceil(n / 5)]."""
    digits = torch.nn.functional.pad(x + 1, (0, -x.shape[-1] % PER_BYTE)).unflatten(-1, (-1, PER_BYTE))
    powers = torch.tensor(POWERS, dtype=torch.uint8, device=x.device)
    return (digits.to(torch.uint8) * powers).sum(-1, dtype=torch.uint8)


def unpack_trits(packed: Tensor, count: int) -> Tensor:
    """The first `count` numbers of each row in float32: the inverse of `pack_trits`."""
    powers = torch.tensor(POWERS, dtype=torch.uint8, device=packed.device)
    digits = packed[..., None] // powers % 3
    return digits.flatten(-2)[..., :count].float() - 1
