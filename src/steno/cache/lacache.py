"""LaCache: each layer keeps other tokens, in a ladder, so that together they remember far more than any one does.

LaCache: Ladder-Shaped KV Caching for Efficient Long-Context Modeling of Large Language Models, section 3. A token is
kept by a few layers in a row; the next tokens by the layers above. When a layer is over its budget, all it holds behind
the sinks is thinned once more by the same pattern, so that memory is finer for what is near and coarser for what is
far. No attention is looked at.

What differs from the paper: the span is given as a share of the layers, so that it fits any depth; tokens keep the
positions they had in the text (the paper numbers cache slots anew); thinning happens at fixed lengths.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from steno.core import Card, KVShape, Span, Tier

from .base import BlockKnob

if TYPE_CHECKING:
    from torch import Tensor

    from ._scene import Scene

CARD = Card(
    paper="LaCache: Ladder-Shaped KV Caching for Efficient Long-Context Modeling of Large Language Models",
    keeps="near",
    breaks=("cache",),
    backends=("hf",),
    requires=("hf",),
)


@dataclass(frozen=True, kw_only=True)
class LaCache(BlockKnob):
    """At most `budget` tokens per layer, beside the dense window; `span` is the rung's length."""

    card: ClassVar[Card] = CARD
    points: ClassVar = ({"budget": 256, "residual": 64}, {"budget": 128, "residual": 64})

    budget: Annotated[int, Span(8, 1 << 24, "tokens")] = 512
    span: Annotated[float, Span(1, 99, "percent of the layers")] = 50.0
    sinks: Annotated[int, Span(0, 7, "tokens")] = 4

    def open(self, shape: KVShape) -> Tier:
        from ._dense import DenseForm
        from ._kept import KeptTier, Shelf

        span = min(max(1, round(self.span * shape.layers / 100)), max(1, shape.layers - 1))
        rungs = -(-shape.layers // span)
        return KeptTier(self, _Ladder(self, span, max(2, rungs)), [[Shelf(DenseForm())]] * shape.layers, shape)


@dataclass(frozen=True, slots=True)
class _Ladder:
    """Layer l is on rung l // span: of every `rungs` tokens in a row it keeps the one of its rung."""

    knob: LaCache
    span: int
    rungs: int
    remembers: bool = False

    def rank(self, scene: "Scene") -> "Tensor":
        import torch

        from ._scene import DROP

        held = list(range(scene.positions.shape[1]))
        sinks = min(self.knob.sinks, len(held))
        while len(held) > self.knob.budget:
            held = held[:sinks] + thin(held[sinks:], self.rungs, scene.layer // self.span)
        rank = torch.full(scene.positions.shape, DROP)
        rank[:, held] = 0.0
        return rank.to(scene.keys.device)


def thin(slots: list[int], rungs: int, rung: int) -> list[int]:
    """Of every `rungs` slots in a row the one at `rung`; an unfinished row at the end stays whole.

    >>> thin([0, 1, 2, 3, 4, 5, 6], 3, 1)
    [1, 4, 6]
    """
    rungs = min(rungs, len(slots))
    whole = len(slots) // rungs * rungs
    return slots[rung % rungs : whole : rungs] + slots[whole:]
