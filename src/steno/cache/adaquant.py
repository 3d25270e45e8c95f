"""KV-AdaQuant: more bits for keys than for values, layer by layer, by the size of each.

More for Keys, Less for Values: Adaptive KV Cache Quantization. An error in the keys is worth their spectral norm, an
error in the values theirs, and keys are the larger; so at the same number of bits 4 and 2 beat 2 and 4. The bits are
those that make sum(norm * 2**-bits) over the keys and values of all layers smallest within the budget, exactly (dynamic
programming).

What differs from the paper: it halves the values' bits everywhere; here norms may tell layers apart. They are
measured once per model (`with_norms`) and become part of the plan; without them keys count `RATIO` times as much.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from steno.core import Card, KVShape, OneOf, Span, Tier
from steno.core.errors import KnobError

from .base import BlockKnob

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

Norms = tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class AdaQuant(BlockKnob):
    """`bits` per number on average over keys and values of all layers; the norms are those of each layer."""

    card: ClassVar[Card] = CARD
    points: ClassVar = ({"residual": 32}, {"bits": 2.5, "residual": 32})

    bits: Annotated[float, Span(2, 8, "bits")] = 3.0
    key_norms: Annotated[tuple[float, ...], Span(0, 1e9)] = ()
    value_norms: Annotated[tuple[float, ...], Span(0, 1e9)] = ()
    residual: Annotated[int, Span(0, 1 << 24, "tokens")] = 64
    block: Annotated[int, OneOf(32, 64, 128, 256)] = 64

    def open(self, shape: KVShape) -> Tier:
        from ._grid import BlockForm, Grid
        from ._paged import PagedTier

        norms = tuple(zip(self.key_norms, self.value_norms, strict=False)) or ((RATIO, 1.0),) * shape.layers
        named = len(self.key_norms), len(self.value_norms)
        if set(named) not in ({0}, {shape.layers}):
            raise KnobError(
                f"{self.name}: key_norms and value_norms must name {shape.layers} layers, got {named[0]} and "
                f"{named[1]}. Measure them on this model with steno.cache.adaquant.with_norms."
            )
        size = (self.block, shape.head_dim)
        chosen = allocate(norms, self.bits)
        return PagedTier(self, [BlockForm(Grid(k, v, size), self.block) for k, v in chosen], shape)


def with_norms(knob: AdaQuant, model: "Model", texts: Sequence[Sequence[int]]) -> AdaQuant:
    """The knob with the mean spectral norms of the model's keys and values on `texts`."""
    import torch

    from ._witness import witness

    total = torch.zeros(0)
    for layers in witness(model, texts):
        found = torch.tensor([[torch.linalg.matrix_norm(x, 2).mean() for x in (seen.k, seen.v)] for seen in layers])
        total = found if not total.numel() else total + found
    keys, values = (tuple(round(x, 4) for x in column) for column in (total / len(texts)).T.tolist())
    return replace(knob, key_norms=keys, value_norms=values)


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
