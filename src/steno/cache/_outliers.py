"""The extremes of each vector kept apart, as they are: a sparse part beside a quantised one.

An outlier costs its value in float16 and its place in one byte (two in vectors longer than 256).
"""

import torch
from torch import Tensor

from ._quant import half


def split(x: Tensor, high: int, low: int) -> tuple[Tensor, Tensor, Tensor]:
    """(rest, values, places) of x [..., N]: the `high` largest and `low` smallest of each vector taken out.

    In `rest` the mean of the others stands in their place. Equal values: the earlier one goes first.
    """
    order = x.float().sort(dim=-1, stable=True).indices
    places = torch.cat([order[..., :low], order[..., x.shape[-1] - high :]], -1)
    values = half(x.gather(-1, places))
    others = order[..., low : x.shape[-1] - high]
    mean = x.float().gather(-1, others).mean(-1, keepdim=True) if others.shape[-1] else torch.zeros_like(x[..., :1])
    rest = x.float().scatter(-1, places, mean.float().expand(places.shape))
    return rest, values, places.to(torch.uint8 if x.shape[-1] <= 256 else torch.int16)


def restore(x: Tensor, values: Tensor, places: Tensor) -> Tensor:
    """x [..., N] in float32 with the outliers back in their places."""
    return x.scatter(-1, places.long(), values.float())


def count(percent: float, length: int) -> int:
    """How many of `length` numbers are `percent` of them, to the nearest."""
    return round(percent * length / 100)
