"""Asymmetric min-max quantisation, x ~ zero + scale * (code + 2**(bits - 1)), with float16 scale and zero.

Codes are taken against the *rounded* scale and zero, and these are rounded outwards (zero down, scale up), so that
every x lies in [zero, zero + scale * (2**bits - 1)] and |x - x_hat| <= scale / 2 holds for what is stored. A constant
group that float16 can hold has scale 0 and comes back exactly.
"""

import torch
from torch import Tensor

from steno.core.errors import ModelError


def quantise(x: Tensor, bits: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """(int8 codes like x, scale, zero): groups run along `dim`, which the float16 scale and zero keep with size 1.

    Raises ModelError where x is not finite or a group leaves the range of float16.
    """
    x, levels = x.float(), 2**bits - 1
    low, high = x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
    zero = low.half()
    zero = torch.where(zero.float() > low, _below(zero), zero)
    reach = high - zero.float()
    scale = (reach / levels).half()
    # Of a float16 that is not negative, the next one up is the next bit pattern.
    above = (scale.view(torch.int16) + 1).view(torch.float16)
    scale = torch.where(scale.float() * levels < reach, above, scale)
    _check(scale.isfinite() & zero.isfinite())
    step = scale.float()
    codes = (x - zero.float()).div_(step.masked_fill(step == 0, 1.0)).round_()
    return codes.sub_(2 ** (bits - 1)).to(torch.int8), scale, zero


def dequantise(codes: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """x in float32 from its float32 codes, which are overwritten."""
    step = scale.float()
    return codes.mul_(step).add_(torch.add(zero.float(), step, alpha=2 ** (bits - 1)))


def half(x: Tensor) -> Tensor:
    """x in float16. Raises ModelError where it is not finite there."""
    out = x.half()
    _check(out.isfinite())
    return out


def _check(finite: Tensor) -> None:
    if not bool(finite.all()):
        raise ModelError(
            "the model's keys or values are not finite, or spread beyond float16 (65504). Use cache.dense with it."
        )


def _below(x: Tensor) -> Tensor:
    """The next float16 down (below 0: from -0.0), as bit patterns are in order of magnitude."""
    bits = x.view(torch.int16)
    return torch.where(x > 0, bits - 1, bits + 1).view(torch.float16)
