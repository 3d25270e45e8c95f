"""The ways to code a chunk, and the choice between them: the smallest that decodes to the same bytes.

neural  symbols of the model's tokenizer through model and mixer
bytes   single bytes through the mixer alone: what is not text, fast
lzma    LZMA2 with fixed settings: long repeats in what is not text
stored  as it is: nothing ever grows by more than its record
"""

import lzma
from dataclasses import dataclass, field

import numpy as np
import xxhash

from . import _coder
from .base import Corrupt, Truncated, WrongModel
from .container import ChunkHead, Kind
from .frequencies import tables
from .neural import SLACK, Neural, Passes

LZMA = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 24}
BLOCK = 1 << 16
"""Symbols of one call of the byte coder: Ctrl-C waits no longer."""

SMALL = 4096
"""Below this size a chunk is coded with and without adaptation, and the smaller code is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """A payload and what a chunk's record says of it."""

    kind: Kind
    payload: bytes
    symbols: int = 0
    lanes: int = 1
    adapt: bool = True


@dataclass(slots=True)
class Kinds:
    """Codes and decodes chunks. `neural` is None where no model is at hand."""

    neural: Neural | None
    passes: Passes = field(default_factory=Passes)

    def encode(self, raw: bytes, text: bool) -> Coded:
        """The smallest code of `raw` that was seen to decode to it."""
        tried = [Coded(kind=Kind.STORED, payload=raw)]
        if raw and text and self.neural is not None:
            tried += _neural(self.neural, raw)
        # A model that halves the chunk was right for it; the rest is tried where it did not.
        if raw and 2 * min(len(c.payload) for c in tried) > len(raw):
            tried += [_bytes(raw), Coded(kind=Kind.LZMA, payload=lzma.compress(raw, lzma.FORMAT_RAW, filters=[LZMA]))]
        for coded in sorted(tried, key=lambda c: (len(c.payload), c.kind)):
            try:
                if coded.kind is Kind.STORED or self._decode(coded, len(raw)) == raw:
                    return coded
            except Corrupt:
                continue
        raise AssertionError("stored chunks always decode")

    def decode(self, head: ChunkHead, payload: bytes) -> bytes:
        """The raw bytes of a chunk. Raises Corrupt unless they are those that were written."""
        if len(payload) != head.payload:
            raise Truncated(f"chunk {head.number} ends early")
        coded = Coded(kind=head.kind, payload=payload, symbols=head.symbols, lanes=head.lanes, adapt=head.adapt)
        try:
            raw = self._decode(coded, head.raw)
        except Corrupt as error:
            raise Corrupt(f"chunk {head.number} is damaged: {error}") from None
        if len(raw) != head.raw or xxhash.xxh3_64_intdigest(raw) != head.check:
            raise Corrupt(f"chunk {head.number} is damaged: its bytes do not fit their hash")
        return raw

    def _decode(self, coded: Coded, length: int) -> bytes:
        if coded.kind is Kind.STORED:
            return coded.payload
        if coded.kind is Kind.LZMA:
            try:
                return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[LZMA]).decompress(coded.payload, length + 1)
            except lzma.LZMAError as error:
                raise Corrupt(str(error)) from None
        if coded.kind is Kind.BYTES:
            return _unbytes(coded, length)
        if self.neural is None:
            raise WrongModel("this part was written with a model, and none is at hand. Name it with --model.")
        raw, passes = self.neural.decode(coded.payload, coded.symbols, coded.lanes, coded.adapt)
        self.passes.add(passes)
        return raw


def is_text(block: bytes) -> bool:
    """Whether a block reads as text: hardly a byte that is no UTF-8, hardly a control character."""
    strange = sum(block.count(byte) for byte in (*range(9), *range(14, 27), *range(28, 32), 127))
    letters = block.decode("utf-8", "replace")
    # A character cut by the end of the block is no fault of the text.
    broken = letters.count("\ufffd") - block.count(b"\xef\xbf\xbd")
    return 100 * (strange + max(0, broken - 2)) <= len(block)


def _neural(neural: Neural, raw: bytes) -> list[Coded]:
    ids = neural.symbols(raw)
    if not ids:
        return []
    lanes = neural.lanes(len(ids))
    return [
        Coded(kind=Kind.NEURAL, payload=neural.encode(ids, lanes, adapt), symbols=len(ids), lanes=lanes, adapt=adapt)
        for adapt in ((True, False) if len(raw) < SMALL else (True,))
    ]


def _bytes(raw: bytes) -> Coded:
    coder = _byte_coder(len(raw))
    ids = np.frombuffer(raw, np.uint8).astype(np.int32)[None]
    for at in range(0, len(raw), BLOCK):
        coder.encode_flat(np.ascontiguousarray(ids[:, at : at + BLOCK]))
    return Coded(kind=Kind.BYTES, payload=coder.finish(), symbols=len(raw))


def _unbytes(coded: Coded, length: int) -> bytes:
    if coded.symbols != length or coded.lanes != 1:
        raise Corrupt("a chunk of bytes has one symbol per byte and one lane")
    coder = _byte_coder(length)
    coder.open(coded.payload)
    parts: list[bytes] = []
    for at in range(0, length, BLOCK):
        parts.append(coder.decode_flat(min(BLOCK, length - at)).astype(np.uint8).tobytes())
        if coder.overrun > SLACK:
            raise Corrupt("the payload ends before its symbols do")
    return b"".join(parts)


def _byte_coder(symbols: int) -> _coder.Chunk:
    return _coder.Chunk(tables=tables(), places=np.arange(256, dtype=np.int32), lanes=1, symbols=symbols, adapt=True)
