"""AQUA-KV: each layer's keys and values are predicted from the layer below, and only what is left is quantised.

Cache Me If You Must: Adaptive Key-Value Quantization for Large Language Models, section 3. Keys of neighbouring layers
say much of the same, and so do the keys and values of one layer. Linear maps, fitted once per model layer by layer on
what a reader will have (reconstructions), predict keys before rotation from the keys below, and values from the keys
beside and the values below. What is left is turned by a Hadamard matrix and rounded to the best levels for a normal law
(HIGGS). The first layer, from which all follows, has more bits; the first tokens are exact.

What differs from the paper: levels are the best ones of one dimension rather than of two; a layer is read from
the layer below while a forward goes through a page, and from all layers below where texts are longer than a page, so
that nothing is held twice. Without fitted `tables` nothing is predicted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from steno.core import Card, KVShape, OneOf, Span, Tier

from .base import BlockKnob

if TYPE_CHECKING:
    from steno.core import Model

CARD = Card(
    paper="Cache Me If You Must: Adaptive Key-Value Quantization for Large Language Models",
    keeps="near",
    breaks=("cache",),
    backends=("hf",),
    requires=("hf",),
)


@dataclass(frozen=True, kw_only=True)
class Aqua(BlockKnob):
    """`first_bits` for the first layer and `bits` for all others; `tables` is a file that `fit` wrote."""

    card: ClassVar[Card] = CARD
    points: ClassVar = (
        {"tables": "aqua-nib", "residual": 32},
        {"residual": 32},
        {"bits": 3, "tables": "aqua-nib", "residual": 32},
    )

    bits: Annotated[int, OneOf(8, 4, 3, 2)] = 2
    first_bits: Annotated[int, OneOf(8, 4, 3, 2)] = 4
    tables: str = ""
    sinks: Annotated[int, Span(0, 31, "tokens")] = 4
    residual: Annotated[int, Span(0, 1 << 24, "tokens")] = 64
    block: Annotated[int, OneOf(32, 64, 128, 256)] = 64

    def open(self, shape: KVShape) -> Tier:
        from ._bundles import BundledTier
        from ._chain import ChainCodec, Normal, Predictor, Shared
        from ._grid import BlockForm
        from ._tables import read

        channels = shape.key_heads * shape.head_dim
        normals = tuple(Normal(self.first_bits if layer == 0 else self.bits, channels) for layer in range(shape.layers))
        fitted = read(self, "tables", shape) if self.tables else {}
        above = range(1, shape.layers) if fitted else ()
        predictors = tuple(Predictor(fitted[f"{layer}.keys"], fitted[f"{layer}.values"]) for layer in above)
        shared = Shared()
        forms = [
            BlockForm(ChainCodec(normals, predictors, shape.key_heads, layer, shared), self.block)
            for layer in range(shape.layers)
        ]
        return BundledTier(self, forms, shape, [range(shape.layers)], before_rotation=True, sinks=self.sinks)


def fit(knob: Aqua, model: "Model", texts: Sequence[Sequence[int]], path: Path) -> Aqua:
    """The knob with predictors fitted to the model on `texts` at the knob's bits, written to `path`."""
    import torch

    from ._chain import Normal, affine, ridge
    from ._tables import write
    from ._witness import witness

    seen = list(witness(model, texts))
    (query_heads, _, dim), key_heads = seen[0][0].q.shape, seen[0][0].k.shape[0]
    shape = len(seen[0]), query_heads, key_heads, dim
    tables: dict[str, torch.Tensor] = {}
    below: tuple[torch.Tensor, torch.Tensor] | None = None
    for layer in range(shape[0]):
        pairs = [(text[layer].before_rotation(), text[layer].v) for text in seen]
        k, v = (torch.cat([x.movedim(0, 1).flatten(1) for x in side]) for side in zip(*pairs, strict=True))
        normal = Normal(knob.bits if layer else knob.first_bits, k.shape[1])
        near = torch.zeros_like(k)
        if below is not None:
            tables[f"{layer}.keys"] = ridge(below[0], k)
            near = affine(below[0], tables[f"{layer}.keys"])
        held = near + normal.decode(*normal.encode(k - near))
        near = torch.zeros_like(v)
        if below is not None:
            beside = torch.cat([held, below[1]], 1)
            tables[f"{layer}.values"] = ridge(beside, v)
            near = affine(beside, tables[f"{layer}.values"])
        below = held, near + normal.decode(*normal.encode(v - near))
    write(path, shape, tables)
    return replace(knob, tables=str(path))
