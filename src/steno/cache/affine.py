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

from steno.core import Card, KVShape, Layout, OneOf, Span, Tier
from steno.core.errors import KnobError

from .base import CacheKnob

if TYPE_CHECKING:
    from torch import Tensor

    Parts = dict[str, Tensor]

CARD = Card(
    paper="KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache",
    keeps="near",
    breaks=("cache",),
    backends=("hf", "native"),
)


@dataclass(frozen=True, kw_only=True)
class Affine(CacheKnob):
    """A `residual` of the session's capacity changes nothing; a `value_group` above the head width means all of it."""

    card: ClassVar[Card] = CARD
    points: ClassVar = (
        {"key_bits": 8, "value_bits": 8, "residual": 32, "block": 32},
        {"residual": 32, "block": 32},
        {"key_bits": 4, "value_bits": 2, "residual": 32, "block": 32},
        {"key_bits": 3, "value_bits": 3, "residual": 32, "block": 32},
        {"key_bits": 2, "value_bits": 2, "residual": 32, "block": 32},
    )

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

        return PagedTier(self, _AffineForm(self, shape.head_dim, self._channels(shape.head_dim)), shape)

    def layout(self, head_dim: int) -> Layout:
        return Layout(
            residual=self.residual, block=self.block, key_bits=self.key_bits, value_bits=self.value_bits,
            group=self.group, value_group=self._channels(head_dim),
        )  # fmt: skip

    def _channels(self, head_dim: int) -> int:
        channels = min(self.value_group, head_dim)
        if head_dim % channels:
            fits = max(c for c in range(1, channels + 1) if head_dim % c == 0)
            raise KnobError(
                f"{self.name}: value_group must divide the model's head width ({head_dim}), got {channels}. "
                f"Set it with --set {self.name}.value_group={max(fits, 8)}"
            )
        return channels


@dataclass(frozen=True, slots=True)
class _AffineForm:
    """Parts of n blocks of `group` tokens: keys and values [G, n, bytes], the (scale, zero) of keys [G, n, 2, D] and of
    values [G, T, 2, D / C].
    """

    knob: Affine
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

        group = self.knob.group
        keys, *key_scales = quantise(k.unflatten(1, (-1, group)), self.knob.key_bits, dim=2)
        values, *value_scales = quantise(v.unflatten(2, (-1, self.channels)), self.knob.value_bits, dim=3)
        return {
            "keys": pack(keys.flatten(2), self.knob.key_bits),
            "key_scales": torch.cat(key_scales, 2),
            "values": pack(values.flatten(2).unflatten(1, (-1, group)).flatten(2), self.knob.value_bits),
            "value_scales": torch.stack(value_scales, 2).squeeze(-1),
        }

    def decode(self, parts: "Parts") -> "tuple[Tensor, Tensor]":
        from ._pack import unpack
        from ._quant import dequantise

        size = self.knob.group * self.dim
        keys = unpack(parts["keys"], self.knob.key_bits, size).unflatten(2, (-1, self.dim))
        values = unpack(parts["values"], self.knob.value_bits, size).reshape(
            keys.shape[0], -1, self.dim // self.channels, self.channels
        )
        key_scale, key_zero = parts["key_scales"].split(1, 2)
        value_scale, value_zero = parts["value_scales"].unsqueeze(-1).unbind(2)
        k = dequantise(keys, key_scale, key_zero, self.knob.key_bits)
        v = dequantise(values, value_scale, value_zero, self.knob.value_bits)
        return k.flatten(1, 2), v.flatten(2)
