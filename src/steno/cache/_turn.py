"""Keys before and after rotation: what the model did to the key at a position, undone and done again.

Statistics of a key channel are steady before rotation and swing after it, so some forms store keys turned back. A turn
is orthogonal: turning back and forth costs the rounding of float32 and nothing else.
"""

import torch
from torch import Tensor

from steno.core.tier import Rope


def turn(k: Tensor, rope: Rope, positions: Tensor, *, back: bool = False) -> Tensor:
    """k [..., T, D] in float32, turned by its positions [..., T]; `back` undoes it."""
    # float64, so that the last bit of cos and sin does not depend on how many positions are asked for at once.
    angle = positions[..., None].double() * torch.tensor(rope.frequencies, dtype=torch.float64, device=k.device)
    cos, sin = angle.cos().float(), angle.sin().float()
    if back:
        sin = -sin
    size = 2 * len(rope.frequencies)
    x, rest = k[..., :size].float(), k[..., size:].float()
    if rope.interleaved:
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
    else:
        a, b = x.chunk(2, -1)
        turned = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    return torch.cat([turned, rest], -1) if rest.shape[-1] else turned
