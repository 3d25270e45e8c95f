"""The levels that reproduce a standard normal number with the least mean square error (Lloyd 1957, Max 1960)."""

from functools import cache
from itertools import pairwise
from math import erf, exp, inf, pi, sqrt

import torch
from torch import Tensor

ROUNDS = 2000


@cache
def levels(bits: int) -> Tensor:
    """2**bits increasing float32 levels, symmetric about 0. Shared by all callers: not to be written to."""
    count = 2**bits
    at = [4.0 * (i + 0.5) / count - 2 for i in range(count)]
    for _ in range(ROUNDS):
        # A level is the mean of what is nearest to it.
        edges = [-inf, *((a + b) / 2 for a, b in pairwise(at)), inf]
        at = [(_density(a) - _density(b)) / (_below(b) - _below(a)) for a, b in pairwise(edges)]
    return torch.tensor([(a - b) / 2 for a, b in zip(at, reversed(at), strict=True)])


def _density(x: float) -> float:
    return exp(-x * x / 2) / sqrt(2 * pi)


def _below(x: float) -> float:
    return (1 + erf(x / sqrt(2))) / 2
