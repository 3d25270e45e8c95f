"""KV-AdaQuant: more bits for keys than for values, layer by layer, by the size of each.

More for Keys, Less for Values: Adaptive KV Cache Quantization. An error in the keys is worth their spectral norm, an
error in the values theirs, and keys are the larger; so at the same number of bits 4 and 2 beat 2 and 4. The bits are
those that make sum(norm * 2**-bits) over the keys and values of all layers smallest within the budget, exactly (dynamic
programming).

What differs from the paper: it halves the values' bits everywhere; here `norms` may tell layers apart. They are
measured once per model (`with_norms`) and become part of the plan; without them keys count `RATIO` times as much.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from steno.core import Card, KVShape, OneOf, Span, Tier
from steno.core.errors import KnobError

from .base import CacheKnob

if TYPE_CHECKING:
    from steno.core import Model

CARD = Card(
    paper="More for Keys, Less for Values: Adaptive KV Cache Quantization",
    keeps="near",
    breaks=("cache",),
    backends=("hf",),
    requires=("hf",),
)

BITS = (2, 3, 4, 8)

RATIO = 5.0
"""Keys' spectral norm over values', assumed where nothing was measured; 2 and above give the paper's 4 and 2 bits."""

Norms = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class AdaQuant(CacheKnob):
    """`bits` per number on average over keys and values of all layers; `norms`: (keys', values') of each layer."""

    card: ClassVar[Card] = CARD
    points: ClassVar = ({"bits": 4.0, "residual": 32}, {"residual": 32}, {"bits": 2.5, "residual": 32})

    bits: Annotated[float, Span(2, 8, "bits")] = 3.0
    norms: Norms = ()
    residual: Annotated[int, Span(0, 1 << 24, "tokens")] = 64
    block: Annotated[int, OneOf(32, 64, 128, 256)] = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(len(pair) != 2 or min(pair) < 0 for pair in self.norms):
            raise KnobError(
                f"{self.name}: norms must hold two numbers of at least 0 for every layer, got {self.norms!r}"
            )

    def due(self, length: int) -> int:
        return max(0, length - self.residual) // self.block * self.block

    def open(self, shape: KVShape) -> Tier:
        from ._grid import BlockForm, Grid
        from ._paged import PagedTier

        if self.norms and len(self.norms) != shape.layers:
            raise KnobError(
                f"{self.name}: norms must name {shape.layers} layers, got {len(self.norms)}. "
                "Measure them on this model with steno.cache.adaquant.with_norms."
            )
        size = (self.block, shape.head_dim)
        chosen = allocate(self.norms or ((RATIO, 1.0),) * shape.layers, self.bits)
        return PagedTier(self, [BlockForm(Grid(k, v, size), self.block) for k, v in chosen], shape)


def with_norms(knob: AdaQuant, model: "Model", texts: Sequence[Sequence[int]]) -> AdaQuant:
    """The knob with the mean spectral norms of the model's keys and values on `texts`."""
    import torch

    from ._witness import witness

    total: list[list[float]] = []
    for layers in witness(model, texts):
        found = [[float(torch.linalg.matrix_norm(x, 2).mean()) for x in (seen.k, seen.v)] for seen in layers]
        total = [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(total or found, found, strict=True)]
    return replace(knob, norms=tuple(tuple(round(x / len(texts), 4) for x in pair) for pair in total))


def allocate(norms: Norms, mean_bits: float) -> list[tuple[int, int]]:
    """(key bits, value bits) of each layer: the least sum(norm * 2**-bits) with at most `mean_bits` on average.

    Of equal sums the one that gives earlier numbers fewer bits.

    >>> allocate(((5.0, 1.0),), 3.0)
    [(4, 2)]
    """
    items = [norm for pair in norms for norm in pair]
    budget = int(mean_bits * len(items) + 1e-9)
    # best[b]: (cost, choices) of the items so far with b bits in all.
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for norm in items:
        step: dict[int, tuple[float, tuple[int, ...]]] = {}
        for used, (cost, chosen) in best.items():
            for bits in BITS:
                new = (cost + norm * 2.0**-bits, (*chosen, bits))
                if used + bits <= budget and (used + bits not in step or new < step[used + bits]):
                    step[used + bits] = new
        best = step
    _, chosen = min(best.values())
    return list(zip(chosen[::2], chosen[1::2], strict=True))
