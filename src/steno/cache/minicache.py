"""MiniCache: in the upper layers, two neighbours share one direction per token and keep their own lengths.

MiniCache: KV Cache Compression in Depth Dimension for Large Language Models. From the middle of a model on, the keys of
one layer point nearly where those of the next do, and so do the values. A pair of layers stores, for each token and
head, one unit vector on the arc between the two (spherical interpolation at `t`) and the two lengths. Tokens whose two
vectors lie farthest apart are kept as they are.

What differs from the paper: a fixed share of each block is kept as it is, rather than what lies beyond a threshold, so
that memory is known; vectors are merged head by head; where the arc is undefined (opposite vectors) the merge is the
straight line. Shared vectors stay in the model's number form; the paper adds 4-bit quantisation on top.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from steno.core import Card, KVShape, OneOf, Span, Tier

from .base import BlockKnob

if TYPE_CHECKING:
    from torch import Tensor

    Parts = dict[str, Tensor]

CARD = Card(
    paper="MiniCache: KV Cache Compression in Depth Dimension for Large Language Models",
    keeps="near",
    breaks=("cache",),
    backends=("hf",),
    requires=("hf",),
)

NEARLY = 1e-4
"""Of the sine of an angle: below it the arc is taken as a straight line."""


@dataclass(frozen=True, kw_only=True)
class MiniCache(BlockKnob):
    """Layers from `start` on are merged two by two; `retain` 100 changes nothing but the lengths' rounding."""

    card: ClassVar[Card] = CARD
    points: ClassVar = ({"residual": 32}, {"retain": 25, "residual": 32})

    start: Annotated[float, Span(0, 100, "percent of the layers")] = 50.0
    t: Annotated[float, Span(0, 1)] = 0.6
    retain: Annotated[float, Span(0, 100, "percent of the tokens")] = 5.0
    residual: Annotated[int, Span(0, 1 << 24, "tokens")] = 64
    block: Annotated[int, OneOf(32, 64, 128, 256)] = 64

    def open(self, shape: KVShape) -> Tier:
        from ._bundles import BundledTier
        from ._dense import DenseForm
        from ._grid import BlockForm

        first = round(self.start * shape.layers / 100)
        pairs = [range(layer, layer + 2) for layer in range(first, shape.layers - 1, 2)]
        side = {layer: layer - pair[0] for pair in pairs for layer in pair}
        forms = [
            BlockForm(_PairCodec(self, side[layer]), self.block) if layer in side else DenseForm(unit=self.block)
            for layer in range(shape.layers)
        ]
        return BundledTier(self, forms, shape, pairs)


@dataclass(frozen=True, slots=True)
class _PairCodec:
    """Of keys and of values: directions [G, n, T, D], lengths [G, n, T, 2] in float16; of what is kept as it is, places
    [G, n, r] and both sides' vectors [G, n, r, 2, D].
    """

    knob: MiniCache
    side: int

    def encode(self, k: "Tensor", v: "Tensor") -> "Parts":
        return {f"key_{n}": x for n, x in self._merge(k).items()} | {f"value_{n}": x for n, x in self._merge(v).items()}

    def decode(self, parts: "Parts") -> "tuple[Tensor, Tensor]":
        return self._side(parts, "key_"), self._side(parts, "value_")

    def _merge(self, x: "Tensor") -> "Parts":
        import torch

        from ._outliers import count
        from ._quant import half

        low, high = x.chunk(2)
        lengths = torch.stack([low.float().norm(dim=-1), high.float().norm(dim=-1)], -1)
        short = lengths.clamp(min=1e-12)
        middle, angle = slerp(low.float() / short[..., :1], high.float() / short[..., 1:], self.knob.t)
        far = angle.sort(dim=-1, descending=True, stable=True).indices[..., : count(self.knob.retain, x.shape[2])]
        where = far[..., None].expand(*far.shape, x.shape[3])
        kept = torch.stack([low.gather(2, where), high.gather(2, where)], 3)
        places = far.to(torch.uint8)
        return {"directions": middle.to(x.dtype), "lengths": half(lengths), "places": places, "kept": kept}

    def _side(self, parts: "Parts", name: str) -> "Tensor":
        directions, places = parts[name + "directions"].float(), parts[name + "places"].long()
        x = directions * parts[name + "lengths"].float()[..., self.side, None]
        where = places[..., None].expand(*places.shape, x.shape[3])
        return x.scatter(2, where, parts[name + "kept"].float()[..., self.side, :])


def slerp(a: "Tensor", b: "Tensor", t: float) -> "tuple[Tensor, Tensor]":
    """(unit vectors on the arcs from a to b at `t`, the arcs' angles) of unit vectors [..., D]."""
    import torch

    angle = (a * b).sum(-1).clamp(-1, 1).acos()
    sine = angle.sin()
    bent = sine > NEARLY
    safe = sine.masked_fill(~bent, 1.0)
    first = torch.where(bent, ((1 - t) * angle).sin() / safe, 1 - t)[..., None]
    second = torch.where(bent, (t * angle).sin() / safe, t)[..., None]
    middle = first * a + second * b
    return middle / middle.norm(dim=-1, keepdim=True).clamp(min=1e-12), angle
