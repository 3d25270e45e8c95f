"""KV heads by SVD: the key heads of a group share the few directions in which their keys and values really lie.

Effectively Compress KV Heads for LLM. Keys and values of several heads, side by side, are nearly of low rank; so a
group of heads is kept as one head of its first principal directions, found once on calibration text, and each query
head reads its own share back. Keys are projected before rotation and turned after they are read, which is the paper's
way with rotary models.

What differs from the paper: the model's weights stay, and the projection happens where tokens enter and leave the
cache, so memory shrinks and arithmetic does not; nothing is fine-tuned afterwards; `keep` may take fewer directions
than a head is wide, or more. Without a fitted `basis` the heads of a group are averaged.
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
    paper="Effectively Compress KV Heads for LLM",
    keeps="near",
    breaks=("cache",),
    backends=("hf",),
    requires=("hf",),
)


@dataclass(frozen=True, kw_only=True)
class KVHeads(BlockKnob):
    """At most `heads` key heads become one of `keep` percent of a head's width; `basis` is a file that `fit` wrote."""

    card: ClassVar[Card] = CARD
    points: ClassVar = (
        {"basis": "kvheads-nib", "heads": 1, "keep": 75, "residual": 32},
        {"basis": "kvheads-nib", "heads": 1, "keep": 50, "residual": 32},
        {"heads": 1, "keep": 75, "residual": 32},
    )

    heads: Annotated[int, OneOf(1, 2, 4, 8)] = 2
    keep: Annotated[float, Span(1, 800, "percent of the head width")] = 100.0
    basis: str = ""

    def open(self, shape: KVShape) -> Tier:
        from ._basis import BasisCodec, mean_basis
        from ._grid import BlockForm
        from ._paged import PagedTier
        from ._tables import read

        heads = _fitting(self.heads, shape.key_heads)
        groups, dim = shape.key_heads // heads, shape.head_dim
        rank = min(max(1, round(self.keep * dim / 100)), heads * dim)
        if self.basis:
            tables = read(self, "basis", shape)
            pairs = [
                [tables[f"{layer}.{side}.{heads}"][..., :rank].float() for side in ("keys", "values")]
                for layer in range(shape.layers)
            ]
        else:
            pairs = [[mean_basis(groups, heads, dim, rank).to(shape.device)] * 2] * shape.layers
        forms = [BlockForm(BasisCodec(keys, values, heads), self.block) for keys, values in pairs]
        return PagedTier(self, forms, shape, before_rotation=True)


def fit(knob: KVHeads, model: "Model", texts: Sequence[Sequence[int]], path: Path) -> KVHeads:
    """The knob with the principal directions of the model's keys and values on `texts`, written to `path`."""
    import torch

    from ._basis import principal
    from ._tables import write
    from ._witness import witness

    moments: dict[str, torch.Tensor] = {}
    shape = 0, 0, 0, 0
    for layers in witness(model, texts):
        (query_heads, _, dim), key_heads = layers[0].q.shape, layers[0].k.shape[0]
        shape = len(layers), query_heads, key_heads, dim
        heads = _fitting(knob.heads, key_heads)
        for layer, seen in enumerate(layers):
            for side, x in (("keys", seen.before_rotation()), ("values", seen.v)):
                wide = x.unflatten(0, (-1, heads)).movedim(1, 2).flatten(2).double()
                name = f"{layer}.{side}.{heads}"
                moments[name] = moments.get(name, 0) + wide.mT @ wide
    write(path, shape, {name: principal(moment).half() for name, moment in moments.items()})
    return replace(knob, basis=str(path))


def _fitting(heads: int, key_heads: int) -> int:
    """The most heads up to `heads` that divide the model's."""
    return max(h for h in (1, 2, 4, 8) if h <= heads and key_heads % h == 0)
