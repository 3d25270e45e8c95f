"""VidKV: keys in one and two bits by channel, values in 1.58.

Plug-and-Play 1.x-Bit KV Cache Quantization for Video Large Language Models. The key channels with
the widest ranges are quantised to two bits; the others are taken to the frequency domain, where one bit, the sign times
the channel's mean size, loses less. Values are ternary per *channel*: -a, 0, a.

What differs from the paper: it is written for the tokens of videos, and this runs on any; a real transform of the quiet
channels keeps as many numbers as there were (a complex one would double them); a sign is a bit and five ternary digits
share a byte, so 1.x is what is stored, scales aside; keys are quantised before rotation; the paper's exception for
visual tokens that the prompt attends to is left out, as it needs to know which tokens are visual.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from steno.core import Card, KVShape, OneOf, Span, Tier

from .base import BlockKnob

if TYPE_CHECKING:
    from torch import Tensor

    Parts = dict[str, Tensor]

CARD = Card(
    paper="Plug-and-Play 1.x-Bit KV Cache Quantization for Video Large Language Models",
    keeps="near",
    breaks=("cache",),
    backends=("hf",),
    requires=("hf",),
)


@dataclass(frozen=True, kw_only=True)
class VidKV(BlockKnob):
    """`wide`: the share of key channels in two bits; `value_bits` 2 is the affine grid, 1 (1.58) the ternary one,
    which drops what is below `threshold` times its channel's mean size.
    """

    card: ClassVar[Card] = CARD
    points: ClassVar = ({"residual": 32}, {"value_bits": 2, "residual": 32})

    wide: Annotated[float, Span(0, 100, "percent")] = 50.0
    value_bits: Annotated[int, OneOf(2, 1)] = 1
    threshold: Annotated[float, Span(0, 2)] = 0.7
    sinks: Annotated[int, Span(0, 31, "tokens")] = 4
    block: Annotated[int, OneOf(32, 64, 128)] = 32

    def open(self, shape: KVShape) -> Tier:
        from ._grid import BlockForm
        from ._paged import PagedTier

        # An even number of quiet channels: a real transform of n numbers is n numbers where n is even.
        wide = shape.head_dim - round(shape.head_dim * (100 - self.wide) / 200) * 2
        form = BlockForm(_VidCodec(self, shape.head_dim, max(0, wide)), self.block)
        return PagedTier(self, form, shape, before_rotation=True, sinks=self.sinks)


@dataclass(frozen=True, slots=True)
class _VidCodec:
    """`wide_at` [G, n, D] holds a bit per channel in bytes of eight; codes of the wide channels, signs [G, n, T, c / 8]
    and sizes [G, n, c] of the frequencies of the quiet ones; digits and sizes [G, n, D] of values.
    """

    knob: VidKV
    dim: int
    wide: int

    def encode(self, k: "Tensor", v: "Tensor") -> "Parts":
        import torch

        from ._grid import encode_grid
        from ._quant import half
        from ._trits import pack_bits, pack_trits

        k, v = k.float(), v.float()
        spread = k.amax(2) - k.amin(2)
        loud = spread.sort(dim=-1, descending=True, stable=True).indices[..., : self.wide]
        mark = torch.zeros_like(spread, dtype=torch.bool).scatter_(-1, loud, True)
        wide, quiet = self._parted(k, mark)
        keys, key_scales = encode_grid(wide, 2, 2)
        waves = _waves(quiet)
        parts = {
            "wide": keys, "wide_scales": key_scales, "wide_at": pack_bits(mark),
            "signs": pack_bits(waves >= 0), "sizes": half(waves.abs().mean(2)),
        }  # fmt: skip
        if self.knob.value_bits == 2:
            values, value_scales = encode_grid(v, 2, 2)
            return {**parts, "values": values, "value_scales": value_scales}
        mean = v.abs().mean(2, keepdim=True)
        heavy = v.abs() > self.knob.threshold * mean
        size = (v.abs() * heavy).sum(2) / heavy.sum(2).clamp(min=1)
        return {
            **parts,
            "values": pack_trits((v.sign() * heavy).to(torch.int8).flatten(2)),
            "value_scales": half(size),
        }

    def decode(self, parts: "Parts") -> "tuple[Tensor, Tensor]":
        import torch

        from ._grid import decode_grid
        from ._trits import unpack_bits, unpack_trits

        block = (self.knob.block, self.dim)
        mark = unpack_bits(parts["wide_at"], self.dim)
        wide = decode_grid(parts["wide"], parts["wide_scales"], 2, (block[0], self.wide), 2)
        signs = unpack_bits(parts["signs"], self.dim - self.wide)
        size = parts["sizes"].float()[:, :, None]
        quiet = _unwaved(torch.where(signs, size, -size))
        place = torch.argsort(mark.to(torch.int8), dim=-1, descending=True, stable=True)
        where = place[:, :, None].expand(*place.shape[:2], *block)
        k = torch.empty(where.shape, device=wide.device).scatter_(3, where, torch.cat([wide, quiet], 3))
        if self.knob.value_bits == 2:
            return k, decode_grid(parts["values"], parts["value_scales"], 2, block, 2)
        trits = unpack_trits(parts["values"], block[0] * block[1]).unflatten(2, block)
        return k, trits * parts["value_scales"].float()[:, :, None]

    def _parted(self, k: "Tensor", mark: "Tensor") -> "tuple[Tensor, Tensor]":
        """The wide channels of k [G, n, T, D] and the quiet ones, each in their order."""
        import torch

        place = torch.argsort(mark.to(torch.int8), dim=-1, descending=True, stable=True)
        sorted_k = k.gather(3, place[:, :, None].expand(k.shape))
        return sorted_k[..., : self.wide].contiguous(), sorted_k[..., self.wide :].contiguous()


def _waves(x: "Tensor") -> "Tensor":
    """The real transform of x [..., c], c even, as c real numbers: real parts, then imaginary ones that are not 0."""
    import torch

    if not x.shape[-1]:
        return x
    f = torch.fft.rfft(x, dim=-1, norm="ortho")
    return torch.cat([f.real, f.imag[..., 1:-1]], -1)


def _unwaved(waves: "Tensor") -> "Tensor":
    import torch

    count = waves.shape[-1]
    if not count:
        return waves
    real, imag = waves.split([count // 2 + 1, count // 2 - 1], -1)
    return torch.fft.irfft(torch.complex(real, torch.nn.functional.pad(imag, (1, 1))), n=count, dim=-1, norm="ortho")
