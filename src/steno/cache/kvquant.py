"""KVQuant: keys before rotation, uneven levels, and the outliers of each vector kept apart.

KVQuant: Towards 10 Million Context Length LLM Inference with KV Cache Quantization, sections 3.1 to 3.5. Before
rotation a key channel keeps its level from token to token; levels lie densest where numbers do; one number in a hundred
stretches the range of all others, so it is stored apart; and the first tokens, which attention leans on, are exact.

What differs from the paper: nothing is calibrated. A channel's centre and spread are those of its own block of tokens
rather than of a calibration set, and the levels are the best ones for a normal law (Lloyd-Max) rather than k-means with
Fisher weights per layer. Keys of models that do not turn them, or turn them in a way that could not be told, are stored
as they are.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from steno.core import Card, KVShape, OneOf, Span, Tier

from .base import BlockKnob

if TYPE_CHECKING:
    from torch import Tensor

    Parts = dict[str, Tensor]

CARD = Card(
    paper="KVQuant: Towards 10 Million Context Length LLM Inference with KV Cache Quantization",
    keeps="near",
    breaks=("cache",),
    backends=("hf",),
    requires=("hf",),
)


@dataclass(frozen=True, kw_only=True)
class KVQuant(BlockKnob):
    """`outliers` is the share of each key channel of a block, and of each token's values, that is stored apart."""

    card: ClassVar[Card] = CARD
    points: ClassVar = ({"residual": 32}, {"key_bits": 2, "value_bits": 2, "residual": 32})

    key_bits: Annotated[int, OneOf(4, 3, 2)] = 3
    value_bits: Annotated[int, OneOf(4, 3, 2)] = 3
    outliers: Annotated[float, Span(0, 50, "percent")] = 1.5
    sinks: Annotated[int, Span(0, 16, "tokens")] = 1
    residual: Annotated[int, Span(0, 1 << 24, "tokens")] = 64
    block: Annotated[int, OneOf(32, 64, 128, 256)] = 64

    def open(self, shape: KVShape) -> Tier:
        from ._grid import BlockForm
        from ._paged import PagedTier

        form = BlockForm(_KVQuantCodec(self, shape.head_dim), self.block)
        return PagedTier(self, form, shape, before_rotation=True, sinks=self.sinks)


@dataclass(frozen=True, slots=True)
class _KVQuantCodec:
    """Parts for keys [G, n, D, .] (vectors are channels) and values [G, n, T, .] (vectors are tokens): codes [G, n,
    bytes], (mean, deviation) [..., 2], outliers and their places [..., s].
    """

    knob: KVQuant
    dim: int

    def encode(self, k: "Tensor", v: "Tensor") -> "Parts":
        keys = self._vectors(k.mT.contiguous(), self.knob.key_bits)
        values = self._vectors(v, self.knob.value_bits)
        return {f"key_{n}": x for n, x in keys.items()} | {f"value_{n}": x for n, x in values.items()}

    def decode(self, parts: "Parts") -> "tuple[Tensor, Tensor]":
        keys = {n.removeprefix("key_"): x for n, x in parts.items() if n.startswith("key_")}
        values = {n.removeprefix("value_"): x for n, x in parts.items() if n.startswith("value_")}
        k = self._unfold(keys, self.knob.key_bits, (self.dim, self.knob.block))
        return k.mT, self._unfold(values, self.knob.value_bits, (self.knob.block, self.dim))

    def _vectors(self, x: "Tensor", bits: int) -> "Parts":
        import torch

        from ._normal import levels
        from ._outliers import count, split
        from ._pack import pack
        from ._quant import half

        taken = count(self.knob.outliers, x.shape[-1])
        rest, outliers, places = split(x, taken - taken // 2, taken // 2)
        mean = half(rest.mean(-1, keepdim=True))
        spread = half((rest - mean.float()).square().mean(-1, keepdim=True).sqrt())
        unit = (rest - mean.float()) / spread.float().masked_fill(spread == 0, 1.0)
        table = levels(bits).to(x.device)
        codes = torch.bucketize(unit.contiguous(), (table[1:] + table[:-1]) / 2)
        codes = (codes - 2 ** (bits - 1)).to(torch.int8)
        scales = torch.cat([mean, spread], -1)
        return {"codes": pack(codes.flatten(2), bits), "scales": scales, "outliers": outliers, "places": places}

    def _unfold(self, parts: "Parts", bits: int, shape: tuple[int, int]) -> "Tensor":
        from ._normal import levels
        from ._outliers import restore
        from ._pack import unpack

        codes = unpack(parts["codes"], bits, shape[0] * shape[1]).unflatten(2, shape)
        table = levels(bits).to(codes.device)
        mean, spread = parts["scales"].float().split(1, -1)
        x = table[(codes + 2 ** (bits - 1)).long()] * spread + mean
        return restore(x, parts["outliers"], parts["places"])
