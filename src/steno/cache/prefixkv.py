"""PrefixKV: layers keep different numbers of tokens, so that each keeps the same share of its attention.

PrefixKV: Adaptive Prefix KV Cache is What Vision Instruction-Following Models Need for Efficient Generation. Sort a
layer's tokens by the attention they get: the first n hold a share p of it. Where attention is gathered on few tokens,
few do; where it is spread, many are needed. Of all ways to divide the tokens among layers, take the one where every
layer reaches the same p (found by bisection).

What differs from the paper: it is written for the image tokens of vision-language models, and this runs on any; the
shares are measured once per model (`with_shares`) and become part of the plan, as a profile over depth; tokens are
chosen every `block` tokens, by the attention they have had so far, and dropped for good.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, ClassVar

from steno.core import Card, KVShape, Span, Tier

from .base import BlockKnob

if TYPE_CHECKING:
    from torch import Tensor

    from steno.core import Model

    from ._scene import Scene

CARD = Card(
    paper="PrefixKV: Adaptive Prefix KV Cache is What Vision Instruction-Following Models Need "
    "for Efficient Generation",
    keeps="near",
    breaks=("cache",),
    backends=("hf",),
    requires=("hf",),
)

NIB = (0.7422, 1.0677, 1.1289, 1.6406, 0.7786, 0.6419)
"""What `with_shares` finds for the model in the box at a budget of 128, on six modules of the standard library."""


@dataclass(frozen=True, kw_only=True)
class PrefixKV(BlockKnob):
    """`budget` tokens per layer on average; `shares` of it from the first layer to the last, in any number of steps."""

    card: ClassVar[Card] = CARD
    points: ClassVar = ({"budget": 128, "residual": 64}, {"budget": 128, "shares": NIB, "residual": 64})

    budget: Annotated[int, Span(8, 1 << 24, "tokens")] = 256
    shares: Annotated[tuple[float, ...], Span(0, 1024)] = ()
    sinks: Annotated[int, Span(0, 7, "tokens")] = 4

    def open(self, shape: KVShape) -> Tier:
        from ._dense import DenseForm
        from ._kept import ObservingTier, Shelf

        shelves = [[Shelf(DenseForm(), most)] for most in divide(self.budget, self.shares, shape.layers)]
        return ObservingTier(self, _Prefix(self.sinks), shelves, shape)


@dataclass(frozen=True, slots=True)
class _Prefix:
    """The attention a token has had, summed over queries, the mean of all heads; the first `sinks` always stay."""

    sinks: int
    remembers: bool = True

    def rank(self, scene: "Scene") -> "Tensor":
        import torch

        had = scene.past + scene.attention(0, scene.sealing).mean((0, 1)).sum(0)
        return torch.where(scene.positions < self.sinks, torch.inf, had)


def with_shares(knob: PrefixKV, model: "Model", texts: Sequence[Sequence[int]]) -> PrefixKV:
    """The knob with the shares at which every layer of the model keeps as much of its attention on `texts`."""
    from ._witness import received, witness

    total: list[float] = []
    for layers in witness(model, texts):
        # Of a text no longer than the budget nothing would be dropped, and nothing learnt.
        kept = equal_share([received(seen).tolist() for seen in layers], min(knob.budget, len(layers[0].k[0]) // 2))
        mean = sum(kept) / len(kept)
        total = [a + b / mean for a, b in zip(total or [0.0] * len(kept), kept, strict=True)]
    return replace(knob, shares=tuple(round(x / len(texts), 4) for x in total))


def equal_share(mass: Sequence[Sequence[float]], budget: float) -> list[int]:
    """Tokens each layer needs to reach one share p of its `mass`, p the largest with at most `budget` on average.

    >>> equal_share([[0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]], 2)
    [1, 3]
    """
    ordered = [sorted(layer, reverse=True) for layer in mass]

    def needed(p: float) -> list[int]:
        out: list[int] = []
        for layer in ordered:
            reached, count, total = 0.0, 0, sum(layer)
            while count < len(layer) and reached < p * total - 1e-12:
                reached += layer[count]
                count += 1
            out.append(count)
        return out

    low, high = 0.0, 1.0
    for _ in range(50):
        p = (low + high) / 2
        low, high = (p, high) if sum(needed(p)) <= budget * len(mass) else (low, p)
    return needed(low)


def divide(budget: int, shares: Sequence[float], layers: int) -> list[int]:
    """Tokens of each layer, `budget` on average to within one, read off `shares` at equal steps of depth.

    >>> divide(10, (1.0, 3.0), 3)
    [5, 10, 15]
    """
    if not shares:
        return [budget] * layers
    profile: list[float] = []
    for layer in range(layers):
        at = layer * (len(shares) - 1) / max(1, layers - 1)
        left = min(int(at), len(shares) - 2) if len(shares) > 1 else 0
        right = shares[left + 1] if len(shares) > 1 else shares[0]
        profile.append(shares[left] + (right - shares[left]) * (at - left))
    total = sum(profile) or 1.0
    # Rounded as running sums, so that no token is lost or made.
    edges = [round(budget * layers * sum(profile[:n]) / total) for n in range(layers + 1)]
    return [max(1, b - a) for a, b in pairwise(edges)]
