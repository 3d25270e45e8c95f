"""The Walsh-Hadamard transform: an orthogonal turn that spreads one large channel over all of them."""

import torch
from torch import Tensor


def hadamard(x: Tensor) -> Tensor:
    """x [..., N] transformed along the last axis, N a power of two; its own inverse.

    Sums and differences of pairs only, so no bit depends on the shape of what is transformed together.
    """
    size, step = x.shape[-1], 1
    while step < size:
        a, b = x.unflatten(-1, (-1, 2, step)).unbind(-2)
        x = torch.stack([a + b, a - b], -2).flatten(-3)
        step *= 2
    return x * size**-0.5


def is_power(size: int) -> bool:
    """Whether `size` is a power of two."""
    return size > 0 and size & (size - 1) == 0
