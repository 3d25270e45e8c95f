"""How a model turns its keys, read from its buffers and believed only where its own keys agree.

A text of one token over and over has the same hidden state at every position, in every layer: attention averages equal
values. So its keys differ by their turn alone, and turning them back must make them equal.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import Cache

from steno.core.tier import Rope

TOKENS = 24
"""Length of the probe; the slowest channels turn too little to be seen in it, and too little to matter."""


def find_rope(net: nn.Module, run: Callable[[Tensor, Cache], object]) -> Rope | None:
    """The turn that explains the keys of all layers, None where there is none; `run` is the model's forward."""
    cache = DynamicCache()
    ids = torch.ones(1, TOKENS, dtype=torch.long, device=next(net.parameters()).device)
    try:
        run(ids, cache)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return None
    held = [getattr(layer, "keys", None) for layer in cache.layers]
    keys = [k[0].float() for k in held if isinstance(k, Tensor)]
    if not keys or any(k.shape[1] != TOKENS for k in keys):
        return None
    for rope in _candidates(net):
        if all(2 * len(rope.frequencies) <= k.shape[2] and _explains(rope, k) for k in keys):
            return rope
    return None


def _candidates(net: nn.Module) -> Iterator[Rope]:
    for module in net.modules():
        frequencies = getattr(module, "inv_freq", None)
        if isinstance(frequencies, Tensor) and frequencies.ndim == 1:
            for interleaved in (False, True):
                yield Rope(frequencies=tuple(frequencies.double().tolist()), interleaved=interleaved)


def _explains(rope: Rope, k: Tensor) -> bool:
    """Whether k [G, T, D] turned back are the same at every position, and were not before."""
    angle = torch.arange(TOKENS, device=k.device)[:, None] * torch.tensor(rope.frequencies, device=k.device)
    size = 2 * len(rope.frequencies)
    pairs = k[..., :size].unflatten(-1, (-1, 2)) if rope.interleaved else k[..., :size].unflatten(-1, (2, -1)).mT
    a, b = pairs.unbind(-1)
    back = torch.stack([a * angle.cos() + b * angle.sin(), b * angle.cos() - a * angle.sin()])
    spread = (back - back[:, :, :1]).abs().amax()
    # What bfloat16 leaves of equal hidden states after a few layers.
    limit = 3e-2 * k.abs().amax()
    return bool(spread < limit) and bool((k - k[:, :1]).abs().amax() > 2 * limit)
