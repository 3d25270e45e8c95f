"""Affine quantisation of sealed tokens: keys per channel over blocks of tokens, values per token over channel groups.

KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache, section 3. Keys have outlier channels, values do not; so
a key channel gets its own range over `group` tokens, and a value token its own range over `value_group` channels. The
newest `residual` tokens stay dense.

What differs from the paper: any of 8, 4, 3 and 2 bits, chosen apart for keys and values (more for keys is the better
trade); keys and values leave the dense window together, `block` tokens at a time, so that what is stored depends on the
committed tokens alone; prefill reads sealed tokens as decoding does. Scale and zero are rounded outwards before the
codes are taken, so |x - x_hat| <= scale / 2 holds for what is stored.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from steno.core import Card, KVShape, OneOf, Span, Tier
from steno.core.errors import KnobError

from .base import CacheKnob

if TYPE_CHECKING:
    from torch import Tensor

    Parts = dict[str, Tensor]

CARD = Card(
    paper="KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache",
    keeps="near",
    breaks=("cache",),
    backends=("hf",),
    requires=("hf",),
)


@dataclass(frozen=True, kw_only=True)
class Affine(CacheKnob):
    """A `residual` of the session's capacity changes nothing; a `value_group` above the head width means all of it."""

    card: ClassVar[Card] = CARD

    key_bits: Annotated[int, OneOf(8, 4, 3, 2)] = 4
    value_bits: Annotated[int, OneOf(8, 4, 3, 2)] = 4
    group: Annotated[int, Span(8, 256, "tokens")] = 32
    value_group: Annotated[int, Span(8, 1024, "channels")] = 32
    residual: Annotated[int, Span(0, 1 << 24, "tokens")] = 128
    block: Annotated[int, Span(8, 4096, "tokens")] = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, value in (("residual", self.residual), ("block", self.block)):
            if value % self.group:
                near = max(self.group, value // self.group * self.group)
                raise KnobError(
                    f"{self.name}: {field} must be a multiple of group ({self.group}), got {value}. "
                    f"Set it with --set {self.name}.{field}={near}"
                )

    def due(self, length: int) -> int:
        return max(0, length - self.residual) // self.block * self.block

    def open(self, shape: KVShape) -> Tier:
        from ._paged import PagedTier

        channels = min(self.value_group, shape.head_dim)
        if shape.head_dim % channels:
            fits = max(c for c in range(1, channels + 1) if shape.head_dim % c == 0)
            raise KnobError(
                f"{self.name}: value_group must divide the model's head width ({shape.head_dim}), got {channels}. "
                f"Set it with --set {self.name}.value_group={max(fits, 8)}"
            )
        return PagedTier(self, _AffineForm(self, shape.key_heads, shape.head_dim, channels), shape)


@dataclass(frozen=True, slots=True)
class _AffineForm:
    """Parts of n blocks: keys [G, n, group, bytes] with (scale, zero) [G, n, 2, D]; values of each channel group
    [G * D/C, T, bytes] with (scale, zero) [G * D/C, T, 2].

    Neither keys nor values are unfolded to numbers of the model where few queries ask: q (s c + z) = (q s) c + q z.
    """

    knob: Affine
    heads: int
    dim: int
    channels: int

    @property
    def unit(self) -> int:
        return self.knob.group

    def keeps(self, sealed: int) -> int:
        return sealed

    def encode(self, k: "Tensor", v: "Tensor") -> "Parts":
        import torch

        from ._pack import pack
        from ._quant import quantise

        blocks = k.unflatten(1, (-1, self.knob.group))
        key_codes, *key_scales = quantise(blocks, self.knob.key_bits, dim=2)
        groups = v.unflatten(2, (-1, self.channels)).transpose(1, 2).flatten(0, 1)
        value_codes, *value_scales = quantise(groups, self.knob.value_bits, dim=2)
        return {
            "keys": pack(key_codes, self.knob.key_bits),
            "key_scales": torch.cat(key_scales, 2),
            "values": pack(value_codes, self.knob.value_bits),
            "value_scales": torch.cat(value_scales, 2),
        }

    def decode(self, parts: "Parts") -> "tuple[Tensor, Tensor]":
        return self._keys(parts), self._values(parts).unflatten(0, (self.heads, -1)).transpose(1, 2).flatten(2)

    def scores(self, parts: "Parts", q: "Tensor") -> "Tensor":
        if q.shape[1] > self.knob.group:
            return q @ self._keys(parts).mT
        codes, scale, zero = self._key_codes(parts)
        asked = q[:, None]
        scores = (asked * scale) @ codes.mT + asked @ zero.mT
        return scores.transpose(1, 2).flatten(2)

    def mix(self, parts: "Parts", p: "Tensor") -> "Tensor":
        shared = p.repeat_interleave(self.dim // self.channels, 0)
        if p.shape[1] > self.channels:
            mixed = shared @ self._values(parts)
        else:
            codes, scale, zero = self._value_codes(parts)
            mixed = (shared * scale.mT) @ codes + shared @ zero
        return mixed.unflatten(0, (self.heads, -1)).transpose(1, 2).flatten(2)

    def _keys(self, parts: "Parts") -> "Tensor":
        codes, scale, zero = self._key_codes(parts)
        return codes.mul_(scale).add_(zero).flatten(1, 2)

    def _values(self, parts: "Parts") -> "Tensor":
        codes, scale, zero = self._value_codes(parts)
        return codes.mul_(scale).add_(zero)

    def _key_codes(self, parts: "Parts") -> "tuple[Tensor, Tensor, Tensor]":
        from ._pack import unpack

        scale, zero = parts["key_scales"].float().chunk(2, 2)
        return unpack(parts["keys"], self.knob.key_bits, self.dim), scale, zero

    def _value_codes(self, parts: "Parts") -> "tuple[Tensor, Tensor, Tensor]":
        from ._pack import unpack

        scale, zero = parts["value_scales"].float().chunk(2, 2)
        return unpack(parts["values"], self.knob.value_bits, self.channels), scale, zero
