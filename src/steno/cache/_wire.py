"""A cache on the wire: a header and chunks of one block of tokens each, every chunk readable alone.

    magic "steno kv 1\\n", u32 length, header (JSON: the form, the shape, the model's name)
    per chunk: u32 length, u32 crc32, u8 level, then per layer the parts in order of their names; integers little-endian

Parts named `codes` are range-coded by the coder of steno's files, the others stand as they are. A code is drawn from
the frequencies of the codes so far whose neighbours (the two codes before it in its channel) were as large: they adapt
as they go, so none are sent. At level n codes are divided by 2**n and rounded, and multiplied again by whoever reads.
"""

import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from struct import Struct
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steno.codecs.ranges import RangeDecoder, RangeEncoder
from steno.core.errors import DataError

from ._anchors import AnchorForm
from ._pack import pack, unpack
from ._paged import PagedTier, Parts

MAGIC = b"steno kv 1\n"
LEVELS = 3
BITS = 15
CLASSES = 6
EDGES = np.array([1, 2, 4, 8, 16])
"""A class begins at each: none of it, 1, 2 or 3, and so on; CLASSES - 1 of them."""
STEP, LIMIT = 24, 1 << 13
"""What a code adds to its count, and the sum at which a class's counts are halved: frequencies follow the text."""

LENGTH, CHUNK = Struct("<I"), Struct("<IIB")

Codes = NDArray[np.int64]


def header(told: dict[str, object]) -> bytes:
    """The start of a stream that holds what `told` says."""
    text = json.dumps(told, sort_keys=True).encode()
    return MAGIC + LENGTH.pack(len(text)) + text


def chunks(tier: PagedTier, row: int, pick: Callable[[Sequence[int]], int]) -> Iterator[bytes]:
    """A chunk for each block of a row; `pick` gets its bytes at each level, the finest first, and names a level."""
    layers = [tier.blocks(row, layer) for layer in range(tier.shape.layers)]
    for blocks in zip(*layers, strict=True):
        found: list[bytes] = []
        for level in range(LEVELS):
            body = b"".join(_write(_form(tier, layer), parts, level) for layer, parts in enumerate(blocks))
            found.append(CHUNK.pack(len(body), crc32(body), level) + body)
        yield found[pick([len(chunk) for chunk in found])]


def read(stream: Iterable[bytes], told: dict[str, object], tier: PagedTier, row: int) -> None:
    """Put the chunks of a stream into an empty row, as they come.

    Raises DataError where the stream is damaged, or holds something else than what `told` says.
    """
    data = bytearray()
    whole = header(told)
    begun = False
    for piece in stream:
        data += piece
        if not begun and len(data) >= len(whole):
            if data[: len(whole)] != whole:
                came = bytes(data[len(MAGIC) + LENGTH.size : 400]).split(b"}")[0].decode(errors="replace")
                raise DataError(f"this stream does not hold the cache asked for ({json.dumps(told)}), but {came}}}")
            del data[: len(whole)]
            begun = True
        while begun and len(data) >= CHUNK.size:
            length, check, level = CHUNK.unpack_from(data)
            if len(data) < CHUNK.size + length:
                break
            body = bytes(data[CHUNK.size : CHUNK.size + length])
            if crc32(body) != check or level >= LEVELS:
                raise DataError(f"the chunk behind token {tier.sealed[row]} is damaged. Ask for it again.")
            at = 0
            for layer in range(tier.shape.layers):
                parts, at = _read(_form(tier, layer), _like(tier, layer), body, at, level)
                tier.append(row, layer, parts)
            del data[: CHUNK.size + length]
    if not begun or data:
        raise DataError(f"the stream ends within a chunk, behind token {tier.sealed[row]}. Ask for the rest of it.")


def _form(tier: PagedTier, layer: int) -> AnchorForm:
    form = tier.forms[layer]
    assert isinstance(form, AnchorForm)
    return form


def _like(tier: PagedTier, layer: int) -> Parts:
    """Parts as a block of this layer has them, in shape and number form."""
    form = _form(tier, layer)
    zeros = torch.zeros(tier.shape.key_heads, form.unit, tier.shape.head_dim, dtype=tier.shape.dtype)
    return form.encode(zeros, zeros)


def _write(form: AnchorForm, parts: Parts, level: int) -> bytes:
    out = bytearray()
    for name, part in sorted(parts.items()):
        if name.endswith("codes"):
            body = encode_codes(_open(form, name, part), form.bits(name), level)
            out += LENGTH.pack(len(body)) + body
        else:
            out += part.contiguous().view(torch.uint8).cpu().numpy().tobytes()
    return bytes(out)


def _read(form: AnchorForm, like: Parts, data: bytes, at: int, level: int) -> tuple[Parts, int]:
    out: Parts = {}
    for name, part in sorted(like.items()):
        if name.endswith("codes"):
            (length,) = LENGTH.unpack_from(data, at)
            shape = _open(form, name, part).shape
            codes = decode_codes(data[at + LENGTH.size : at + LENGTH.size + length], shape, form.bits(name), level)
            out[name] = _close(form, name, codes, part)
            at += LENGTH.size + length
        else:
            size = part.numel() * part.element_size()
            raw = torch.frombuffer(bytearray(data[at : at + size]), dtype=torch.uint8)
            out[name] = raw.view(part.dtype).view(part.shape)
            at += size
    return out, at


def _open(form: AnchorForm, name: str, part: Tensor) -> Codes:
    """Packed codes [G, 1, bytes] as numbers [T', G D]: a row per token."""
    codes = unpack(part, form.bits(name), form.differences).unflatten(2, (-1, form.shape[1]))
    return codes[:, 0].movedim(0, 1).flatten(1).to(torch.int64).cpu().numpy()


def _close(form: AnchorForm, name: str, codes: Codes, like: Tensor) -> Tensor:
    back = torch.from_numpy(codes).to(torch.int8).unflatten(1, (like.shape[0], -1)).movedim(1, 0)
    return pack(back.flatten(1)[:, None], form.bits(name))


def encode_codes(codes: Codes, bits: int, level: int) -> bytes:
    """Codes [T, C] of so many bits, at a level, as bytes."""
    coder, model = RangeEncoder(), _Model(codes.shape[1], bits, level)
    sizes = (np.abs(codes) + (1 << level >> 1)) >> level
    for row in np.sign(codes) * sizes:
        frequencies, ends = model.tables()
        symbols = row + model.most
        lows = ends[model.classes, symbols] - frequencies[model.classes, symbols]
        for low, frequency in zip(lows.tolist(), frequencies[model.classes, symbols].tolist(), strict=True):
            coder.encode(low, frequency, BITS)
        model.see(row)
    return coder.finish()


def decode_codes(data: bytes, shape: tuple[int, ...], bits: int, level: int) -> Codes:
    """The inverse of `encode_codes`, up to what the level has rounded away."""
    coder, model = RangeDecoder(data), _Model(shape[1], bits, level)
    out = np.zeros(shape, np.int64)
    for row in out:
        _, ends = model.tables()
        lines = [[0, *line] for line in ends.tolist()]
        for channel, number in enumerate(model.classes.tolist()):
            line = lines[number]
            symbol = bisect_right(line, coder.target(BITS)) - 1
            coder.consume(line[symbol], line[symbol + 1] - line[symbol], BITS)
            row[channel] = symbol - model.most
        model.see(row)
    most = 2 ** (bits - 1) - 1
    return np.clip(out << level, -most, most)


class _Model:
    """Counts of codes by the class of their neighbours, in integers only."""

    def __init__(self, channels: int, bits: int, level: int) -> None:
        self.most = (2 ** (bits - 1) - 1 + (1 << level >> 1)) >> level
        size = np.abs(np.arange(-self.most, self.most + 1))
        self.counts = np.stack([1 + (32 >> np.minimum(size >> c, 6)) for c in range(CLASSES)]).astype(np.int64)
        self.before = np.zeros((2, channels), np.int64)
        self.classes = np.zeros(channels, np.int64)

    def tables(self) -> tuple[Codes, Codes]:
        """(frequencies, their running sums), [class, symbol] each; a class sums to 2**BITS."""
        symbols = self.counts.shape[1]
        table = 1 + self.counts * ((1 << BITS) - symbols) // self.counts.sum(1, keepdims=True)
        table[np.arange(CLASSES), self.counts.argmax(1)] += (1 << BITS) - table.sum(1)
        return table, table.cumsum(1)

    def see(self, row: Codes) -> None:
        """Count the codes [C] of a token."""
        np.add.at(self.counts, (self.classes, row + self.most), STEP)
        full = self.counts.sum(1) > LIMIT
        self.counts[full] = (self.counts[full] + 1) >> 1
        self.before = np.stack([np.abs(row), self.before[0]])
        near = self.before.sum(0)
        self.classes = np.searchsorted(EDGES, near, side="right")
