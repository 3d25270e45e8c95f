"""Round to nearest: each weight becomes the nearest point of a symmetric integer grid, w ~ s * q.

8 bits: one scale per output channel, s = max|w| / 127. 4 bits: one scale per group of inputs, s = max|w| / 7.5, so that
the grid [-8, 7] reaches every weight of the group to within half a step. The scale is rounded up to the number form it
is stored in before the integers are chosen for it, hence |w - s q| <= s / 2 holds for what is on disk. Needs no data.

The folder is in the compressed-tensors format (`int-quantized`, `pack-quantized`) and loads in stock transformers,
which restores the matrices; the native engine multiplies the 8-bit integers as they are. With 16-bit scales, groups of
32, 64 and 128 cost 4.5, 4.25 and 4.125 bits per weight, and 16 bytes per matrix for its shape.

Baseline of the field, without a paper of its own; the grid of 7.5 is the one compressed-tensors observers use.
"""

from dataclasses import dataclass
from functools import partial
from math import gcd
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt

from steno.core import Card, OneOf
from steno.core.errors import ModelError
from steno.models.checkpoint import Checkpoint

from ._layers import layers, shape, stored_bits
from ._ledger import Layer
from ._output import Array, Piece
from ._recoding import Recoded, Recoding, float_dtype
from ._write import Progress
from .base import Calibration, WeightsKnob

CARD = Card(keeps="near", breaks=("weights",), backends=("hf", "native"))

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Rtn(WeightsKnob):
    """`group` is for 4 bits. `head` and `embeddings` quantise the output head and the input embedding too; where the
    two are tied, `embeddings` means both."""

    card: ClassVar[Card] = CARD
    points: ClassVar = (
        {"bits": 8},
        {"bits": 8, "embeddings": True},
        {"bits": 4, "group": 32},
        {"bits": 4, "group": 64},
    )
    bits: Annotated[int, OneOf(8, 4)] = 8
    group: Annotated[int, OneOf(32, 64, 128)] = 32
    head: bool = False
    embeddings: bool = False

    def recode(
        self, source: Checkpoint, scratch: Path, calibration: Calibration | None, progress: Progress
    ) -> Recoding:
        if (now := stored_bits(source)) <= self.bits:
            raise ModelError(
                f"{source.path} already has {now}-bit weights, so {self.bits} bits would only lose. "
                f"Start from the full-precision model, or set --set weights.rtn.bits=4."
            )
        found = layers(source)
        if self.head and not (found.head or self.embeddings):
            raise ModelError(
                f"{source.path} has no output head of its own, it is tied to the embedding. "
                f"Set --set weights.rtn.embeddings=true."
            )
        names = [*found.linear, *found.experts]
        names += [found.head] if self.head and found.head else []
        names += [found.embedding] if self.embeddings else []
        ignore = [*found.other, *([found.head.removesuffix(".weight")] if found.head and not self.head else [])]
        # transformers takes the experts of a mixture in packed form only, and one scheme serves all layers.
        packed = self.bits == 4 or bool(found.experts)
        weights = {name: self._recoded(source, name, packed) for name in names}
        return Recoding(weights=weights, config={"quantization_config": self._scheme(ignore, packed)})

    def _recoded(self, source: Checkpoint, name: str, packed: bool) -> Recoded:
        rows, columns = shape(source, name)
        group = columns if self.bits == 8 else self.group
        if columns % group:
            fits = [g for g in (128, 64, 32) if gcd(g, columns) == g]
            remedy = f"weights.rtn.group={fits[0]}" if fits else "weights.rtn.bits=8"
            raise ModelError(
                f"{source.path}: groups of {group} do not divide the {columns} inputs of "
                f"{name.removesuffix('.weight')}. Set --set {remedy}."
            )
        stored = float_dtype(source, name)
        # Per channel a wide scale costs nothing; per group it would cost as much as an eighth of the integers.
        narrow = "BF16" if stored == "F32" and self.bits == 4 else stored
        scales = Piece(f"{name}_scale", narrow, (rows, columns // group), "scales")
        pieces = (Piece(name, "I8", (rows, columns), "payload"), scales)
        if packed:
            words = Piece(f"{name}_packed", "I32", (rows, -(-columns * self.bits // 32)), "payload")
            pieces = (words, scales, Piece(f"{name}_shape", "I64", (2,), "shapes"))
        return Recoded(pieces=pieces, make=partial(self._make, source, name, group, narrow, packed))

    def _make(self, source: Checkpoint, name: str, group: int, dtype: str, packed: bool) -> tuple[list[Array], Layer]:
        weight = source.linear(name, shape(source, name)).dense()
        scales, scale_numbers, integers = quantise(weight, self.bits, group, dtype)
        error = float(np.linalg.norm(weight - dequantise(integers, scales)) / max(np.linalg.norm(weight), 1e-30))
        form = "int8 per channel" if self.bits == 8 else f"int4 group {group}"
        layer = Layer(name.removesuffix(".weight"), weight.size, form, round(error, 9))
        if not packed:
            return [integers, scale_numbers], layer
        return [pack(integers, self.bits), scale_numbers, np.array(weight.shape, np.int64)], layer

    def _scheme(self, ignore: list[str], packed: bool) -> dict[str, object]:
        layout = "pack-quantized" if packed else "int-quantized"
        weights: dict[str, object] = {"num_bits": self.bits, "type": "int", "symmetric": True, "dynamic": False}
        weights |= {"strategy": "channel"} if self.bits == 8 else {"strategy": "group", "group_size": self.group}
        targets = ["Linear", "Embedding"] if self.embeddings else ["Linear"]
        # transformers takes the layout of a group from the group alone, and otherwise guesses pack-quantized.
        group = {"targets": targets, "weights": weights, "format": layout}
        scheme: dict[str, object] = {"quant_method": "compressed-tensors", "format": layout}
        scheme |= {"quantization_status": "compressed", "config_groups": {"group_0": group}, "ignore": ignore}
        # A head tied to a packed embedding would multiply by the integers: ask for floats at load time.
        return scheme | ({"dequantize": True} if self.embeddings else {})


def quantise(weight: F32, bits: int, group: int, dtype: str) -> tuple[F32, Array, npt.NDArray[np.int8]]:
    """[N, K] -> scales [N, G] as float32, the same as stored in `dtype` (BF16: as its bits), and integers [N, K]."""
    rows, columns = weight.shape
    blocks = weight.reshape(rows, columns // group, group)
    top = np.abs(blocks).max(-1).astype(np.float64)
    # A block of zeros has no scale; any positive one gives zeros back.
    scales, scale_numbers = round_up(np.where(top == 0, 1.0, top / (127 if bits == 8 else 7.5)), dtype)
    low, high = (-127, 127) if bits == 8 else (-8, 7)
    integers = np.clip(np.rint(blocks / scales[..., None]), low, high).astype(np.int8)
    return scales, scale_numbers, integers.reshape(rows, columns)


def dequantise(integers: npt.NDArray[np.int8], scales: F32) -> F32:
    """What integers [N, K] and scales [N, G] mean, float32 [N, K]."""
    blocks = integers.reshape(len(integers), scales.shape[1], -1)
    return (blocks * scales[..., None]).reshape(integers.shape)


def round_up(values: npt.NDArray[np.float64], dtype: str) -> tuple[F32, Array]:
    """The least numbers of `dtype` that are not below positive `values`: as float32, and as stored."""
    wide = values.astype(np.float32)
    wide = np.where(wide < values, np.nextafter(wide, np.float32(np.inf)), wide)
    if dtype == "BF16":
        bits = ((wide.view(np.uint32) + np.uint32(0xFFFF)) >> 16).astype(np.uint16)
        return (bits.astype(np.uint32) << 16).view(np.float32), bits
    if dtype == "F16":
        half = wide.astype(np.float16)
        half = np.where(half < wide, np.nextafter(half, np.float16(np.inf)), half)
        return half.astype(np.float32), half
    return wide, wide


def pack(integers: npt.NDArray[np.int8], bits: int) -> npt.NDArray[np.int32]:
    """Numbers of 4 or 8 bits [N, K] -> int32 words [N, ceil(K * bits / 32)]: shifted up by 2^(bits - 1), lowest first.

    >>> pack(np.array([[0, 1, 2, -1]], np.int8), 4).tolist() == [[0x7A98]]
    True
    """
    rows, columns = integers.shape
    fields = np.zeros((rows, -(-columns * bits // 32) * (32 // bits)), np.uint8)
    fields[:, :columns] = integers.astype(np.int16) + (1 << (bits - 1))
    return (fields if bits == 8 else fields[:, 0::2] | (fields[:, 1::2] << 4)).view("<i4")
