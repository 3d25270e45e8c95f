"""RazorAttention: heads that look things up keep the whole text; the others its first and newest tokens and one mean.

RazorAttention: Efficient KV Cache Compression Through Retrieval Heads, sections 3.2 to 3.4 and algorithm 1. Few heads
find what was said long ago; on a random text repeated a few times they look at the earlier copy of a token (echo) or at
the token behind it (induction). The others look at what is near, and of what they drop a *compensation token* stays:
the mean of the dropped keys and values, which counts as often as tokens are in it.

What differs from the paper: which heads retrieve is measured once per model (`with_heads`) and becomes part of the
plan; heads are key heads, and one retrieves if any of its query heads does; the window grows with the text at fixed
lengths only. Keys are averaged as the model turned them, as in the paper.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from steno.core import Card, KVShape, Span, Tier
from steno.core.errors import KnobError

from .base import BlockKnob

if TYPE_CHECKING:
    from torch import Tensor

    from steno.core import Model

    from ._scene import Scene

CARD = Card(
    paper="RazorAttention: Efficient KV Cache Compression Through Retrieval Heads",
    keeps="near",
    breaks=("cache",),
    backends=("hf",),
    requires=("hf",),
)

COPIES = 4
"""How often the random text stands in a row."""

NIB = (0, 5)
"""What `with_heads` finds for the model in the box."""


@dataclass(frozen=True, kw_only=True)
class Razor(BlockKnob):
    """`heads` retrieve: layer * key heads + head. The others keep `window` tokens, or `share` of the text if more."""

    card: ClassVar[Card] = CARD
    ages: ClassVar[bool] = True
    points: ClassVar = (
        {"window": 128, "residual": 32},
        {"window": 128, "residual": 32, "compensate": False},
        {"heads": NIB, "window": 128, "residual": 32},
    )

    heads: Annotated[tuple[int, ...], Span(0, 1 << 20)] = ()
    window: Annotated[int, Span(0, 1 << 24, "tokens")] = 512
    share: Annotated[float, Span(0, 100, "percent")] = 20.0
    sinks: Annotated[int, Span(0, 1024, "tokens")] = 4
    compensate: bool = True

    def open(self, shape: KVShape) -> Tier:
        from ._dense import DenseForm
        from ._heads import HeadsTier, Part
        from ._kept import KeptTier, Shelf
        from ._mean import MeanTier
        from ._ranks import Newest

        count = shape.layers * shape.key_heads
        if self.heads and max(self.heads) >= count:
            raise KnobError(
                f"{self.name}: heads must be below {count} on this model, got {max(self.heads)}. "
                "Measure them on it with steno.cache.razor.with_heads."
            )

        def divide(layer: int, only: Callable[[Sequence[int]], KVShape]) -> list[Part]:
            ours = {head for head in range(shape.key_heads) if layer * shape.key_heads + head in self.heads}
            whole, near = tuple(sorted(ours)), tuple(h for h in range(shape.key_heads) if h not in ours)
            shelves = [[Shelf(DenseForm())]]
            parts: list[Part] = []
            if whole:
                parts.append(Part(whole, KeptTier(self, Newest(), shelves, only(whole))))
            if near:
                kind = MeanTier if self.compensate else KeptTier
                parts.append(Part(near, kind(self, _Near(self), shelves, only(near))))
            return parts

        return HeadsTier(shape, divide)


@dataclass(frozen=True, slots=True)
class _Near:
    """The first tokens and the newest."""

    knob: Razor
    remembers: bool = False

    def rank(self, scene: "Scene") -> "Tensor":
        import torch

        from ._scene import DROP

        end = scene.start + scene.sealing
        window = max(self.knob.window, int(self.knob.share * end / 100))
        stays = (scene.positions < self.knob.sinks) | (scene.positions >= end - window)
        return torch.where(stays, 0.0, DROP)


def with_heads(knob: Razor, model: "Model", *, tokens: int = 240, echo: float = 1.0, induction: float = 14.0) -> Razor:
    """The knob with the model's retrieval heads: of all query heads the best `echo` and `induction` percent each, at
    least one, on a random text of `tokens` tokens that stands four times in a row.
    """
    import torch

    from ._witness import witness

    text = torch.randint(model.vocab, (tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    layers = next(witness(model, [text * COPIES]))
    scores = torch.stack([torch.stack(look_back(seen.q, seen.k, tokens)) for seen in layers], 1).flatten(1)
    share = layers[0].q.shape[0] // layers[0].k.shape[0]
    found: set[int] = set()
    for score, percent in zip(scores, (echo, induction), strict=True):
        best = score.sort(descending=True, stable=True).indices[: max(1, round(percent * len(score) / 100))]
        found |= {int(head) // share for head in best}
    return replace(knob, heads=tuple(sorted(found)))


def look_back(q: "Tensor", k: "Tensor", period: int) -> "tuple[Tensor, Tensor]":
    """(echo, induction), [H] each: the mean attention to the earlier copies of a token, and to those behind them.

    q [H, T, D], the softmax scale in them, k [G, T, D] of a text that repeats every `period` tokens.
    """
    import torch

    groups, tokens, _ = k.shape
    scores = q.unflatten(0, (groups, -1)) @ k[:, None].mT
    place = torch.arange(tokens, device=k.device)
    back = place[:, None] - place
    p = scores.masked_fill_(back < 0, -torch.inf).softmax(-1).flatten(0, 1)[:, period:]
    back = back[period:]
    echo = (back > 0) & (back % period == 0)
    induction = (back > 0) & (back % period == period - 1)
    return (p * echo).sum(-1).mean(-1), (p * induction).sum(-1).mean(-1)
