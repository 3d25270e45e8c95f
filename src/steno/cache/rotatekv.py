"""RotateKV: keys turned by a Hadamard matrix across heads, their channels sorted, then quantised per token.

RotateKV: Accurate and Robust 2-Bit KV Cache Quantization for LLMs via Outlier-Aware Adaptive Rotations. A Hadamard
matrix spreads an outlier channel over all channels of a few heads; before the model's rotation, where outliers stand
still. Sorting the channels by size makes those of a quantisation group alike. Tokens that attention sinks in stay
exact.

What differs from the paper: the order of channels is that of each block's own activations, stored with it, rather than
calibrated; sinks are the first `sinks` tokens rather than those of the largest hidden states, which a cache does not
see; values are turned when they are stored and read, not in the weights. Widths that are no power of two are refused.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from steno.core import Card, KVShape, OneOf, Span, Tier
from steno.core.errors import KnobError

from .base import BlockKnob

if TYPE_CHECKING:
    from torch import Tensor

    Parts = dict[str, Tensor]

CARD = Card(
    paper="RotateKV: Accurate and Robust 2-Bit KV Cache Quantization for LLMs via Outlier-Aware Adaptive Rotations",
    keeps="near",
    breaks=("cache",),
    backends=("hf",),
    requires=("hf",),
)


@dataclass(frozen=True, kw_only=True)
class RotateKV(BlockKnob):
    """At most `heads` key heads are turned together; a `group` of channels shares a range."""

    card: ClassVar[Card] = CARD
    points: ClassVar = (
        {"key_bits": 4, "value_bits": 4, "residual": 32},
        {"key_bits": 3, "value_bits": 3, "residual": 32},
        {"residual": 32},
        {"reorder": False, "residual": 32},
    )

    key_bits: Annotated[int, OneOf(8, 4, 3, 2)] = 2
    value_bits: Annotated[int, OneOf(8, 4, 3, 2)] = 2
    heads: Annotated[int, OneOf(1, 2, 4, 8)] = 4
    group: Annotated[int, OneOf(8, 16, 32, 64, 128)] = 32
    reorder: bool = True
    sinks: Annotated[int, Span(0, 31, "tokens")] = 4
    residual: Annotated[int, Span(0, 1 << 24, "tokens")] = 64
    block: Annotated[int, OneOf(32, 64, 128, 256)] = 64

    def open(self, shape: KVShape) -> Tier:
        from ._grid import BlockForm
        from ._hadamard import is_power
        from ._paged import PagedTier

        if not is_power(shape.head_dim):
            raise KnobError(
                f"{self.name}: the model's head width must be a power of two, got {shape.head_dim}. Use cache.affine."
            )
        heads = max(h for h in (1, 2, 4, 8) if h <= self.heads and shape.key_heads % h == 0)
        form = BlockForm(_RotateCodec(self, heads, shape.head_dim), self.block)
        return PagedTier(self, form, shape, before_rotation=True, sinks=self.sinks)


@dataclass(frozen=True, slots=True)
class _RotateCodec:
    """Codes of keys [G / h, n, bytes] and of values [G, n, bytes], their (scale, zero) [..., T * groups, 2], and the
    order of key channels [G / h, n, h D].
    """

    knob: RotateKV
    heads: int
    dim: int

    def encode(self, k: "Tensor", v: "Tensor") -> "Parts":
        import torch

        from ._hadamard import hadamard

        wide = hadamard(k.float().unflatten(0, (-1, self.heads)).movedim(1, 3).flatten(3))
        size = wide.abs().sum(2)
        order = size.sort(dim=-1, stable=True).indices if self.knob.reorder else size[..., :0].long()
        if self.knob.reorder:
            wide = wide.gather(3, order[:, :, None].expand(wide.shape))
        keys, key_scales = self._grouped(wide, self.knob.key_bits)
        values, value_scales = self._grouped(hadamard(v.float()), self.knob.value_bits)
        order = order.to(torch.int16)
        return {
            "keys": keys, "key_scales": key_scales, "order": order, "values": values, "value_scales": value_scales
        }  # fmt: skip

    def decode(self, parts: "Parts") -> "tuple[Tensor, Tensor]":
        from ._hadamard import hadamard

        wide = self._whole(parts["keys"], parts["key_scales"], self.knob.key_bits, self.heads * self.dim)
        if self.knob.reorder:
            order = parts["order"].long()[:, :, None].expand(wide.shape)
            wide = wide.new_empty(wide.shape).scatter_(3, order, wide)
        k = hadamard(wide).unflatten(3, (self.heads, self.dim)).movedim(3, 1).flatten(0, 1)
        return k, hadamard(self._whole(parts["values"], parts["value_scales"], self.knob.value_bits, self.dim))

    def _grouped(self, x: "Tensor", bits: int) -> "tuple[Tensor, Tensor]":
        from ._grid import encode_grid

        return encode_grid(x.unflatten(3, (-1, min(self.knob.group, x.shape[3]))).flatten(2, 3), bits, 3)

    def _whole(self, packed: "Tensor", scales: "Tensor", bits: int, width: int) -> "Tensor":
        from ._grid import decode_grid

        group = min(self.knob.group, width)
        x = decode_grid(packed, scales, bits, (self.knob.block * width // group, group), 3)
        return x.flatten(2).unflatten(2, (self.knob.block, width))
