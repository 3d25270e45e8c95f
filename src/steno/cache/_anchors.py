"""Blocks of tokens as a few anchors and what sets the others apart from them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ._grid import decode_grid, encode_grid
from ._pack import pack, unpack
from ._quant import half

Parts = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class AnchorForm:
    """A `_paged.Form` over blocks of `shape` = (T, D).

    Parts of keys and of values: anchors in 8 bits [G, n, bytes] and their (scale, zero) [G, n, T / g, 2]; differences
    [G, n, bytes] and their scale per token [G, n, T - T / g].
    """

    key_bits: int
    value_bits: int
    group: int
    shape: tuple[int, int]

    @property
    def unit(self) -> int:
        return self.shape[0]

    def keeps(self, sealed: int) -> int:
        return sealed

    @property
    def differences(self) -> int:
        """Numbers that one head's block stores as differences."""
        return (self.shape[0] - self.shape[0] // self.group) * self.shape[1]

    def bits(self, part: str) -> int:
        """Bits of the differences in the part of this name."""
        return self.key_bits if part.startswith("key_") else self.value_bits

    def encode(self, k: Tensor, v: Tensor) -> Parts:
        k, v = (x.unflatten(1, (-1, self.unit)) for x in (k, v))
        parts = {f"key_{name}": x for name, x in self._split(k, self.key_bits).items()}
        return parts | {f"value_{name}": x for name, x in self._split(v, self.value_bits).items()}

    def decode(self, parts: Parts) -> tuple[Tensor, Tensor]:
        return self._join(parts, "key_").flatten(1, 2), self._join(parts, "value_").flatten(1, 2)

    def _split(self, x: Tensor, bits: int) -> Parts:
        groups = x.float().unflatten(2, (-1, self.group))
        anchors, anchor_scales = encode_grid(groups[:, :, :, 0], 8, 3)
        near = decode_grid(anchors, anchor_scales, 8, (self.shape[0] // self.group, self.shape[1]), 3)
        apart = groups[:, :, :, 1:] - near[:, :, :, None]
        most = 2 ** (bits - 1) - 1
        scales = half(apart.abs().amax(-1) / most)
        step = scales.float().masked_fill(scales == 0, 1.0)
        codes = (apart / step[..., None]).round().clamp(-most, most).to(torch.int8)
        return {
            "anchors": anchors, "anchor_scales": anchor_scales,
            "codes": pack(codes.flatten(2), bits), "scales": scales.flatten(2),
        }  # fmt: skip

    def _join(self, parts: Parts, side: str) -> Tensor:
        count, dim = self.shape[0] // self.group, self.shape[1]
        near = decode_grid(parts[side + "anchors"], parts[side + "anchor_scales"], 8, (count, dim), 3)[:, :, :, None]
        codes = unpack(parts[side + "codes"], self.bits(side), self.differences)
        apart = codes.unflatten(2, (count, self.group - 1, dim))
        scales = parts[side + "scales"].float().unflatten(2, (count, self.group - 1))
        return torch.cat([near, near + apart * scales[..., None]], 3).flatten(2, 3)
