"""Files into a .sz stream in one pass: blocks of a kind gather into a chunk; a full one is coded, checked, written."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO

import xxhash

from .container import RAW_MOST, ChunkHead, Entry, Header, Index, Kind, Piece
from .kinds import Kinds, is_text

BLOCK = 1 << 16
"""Bytes looked at to tell text from what is none."""

TEXT_CHUNK = 1 << 18
"""Default raw bytes of a chunk of text: what has to be decoded to read one byte of it."""

OTHER_CHUNK = 1 << 22
"""Raw bytes of a chunk of anything else, which decodes faster and gains more from size."""

NAMES = 1 << 15
"""Bytes of names after which a chunk's record, whose length has 16 bits, takes no more."""


@dataclass(slots=True)
class Totals:
    """What a writer did. `kinds`: (raw bytes, payload bytes) by kind of chunk."""

    raw: int = 0
    written: int = 0
    files: int = 0
    chunks: int = 0
    kinds: dict[Kind, tuple[int, int]] = field(default_factory=dict)


class Writer:
    """Writes one .sz stream to `out`, which need not seek. `close` writes the index; without it the file is incomplete.

    chunk   raw bytes of a chunk of text
    watch   called after every chunk with the raw bytes done
    """

    def __init__(
        self, out: BinaryIO, kinds: Kinds, header: Header, *, chunk: int = TEXT_CHUNK,
        watch: Callable[[int], None] = lambda done: None,
    ) -> None:  # fmt: skip
        if not 1024 <= chunk <= RAW_MOST:
            raise ValueError(f"chunk: between 1024 and {RAW_MOST} bytes, got {chunk}")
        self.totals = Totals()
        self._out, self._kinds, self._chunk, self._watch = out, kinds, chunk, watch
        self._buffer = bytearray()
        self._text = True
        self._pieces: list[Piece] = []
        self._names = 0
        self._sizes: list[tuple[int, int]] = []
        self._hash = xxhash.xxh3_64()
        self._write(header.pack())

    def add(self, name: str, entry: Entry, source: BinaryIO | None = None) -> None:
        """Append a file (or a folder, which has no content)."""
        self.totals.files += 1
        done, block = 0, _read(source)
        while True:
            text = is_text(block)
            if block and (text != self._text or len(self._buffer) + len(block) > self._limit()):
                if self._buffer:
                    self._flush()
                self._text = text
            if self._names > NAMES:
                self._flush()
            if done == 0 or not self._pieces:
                self._pieces.append(Piece(at=len(self._buffer), offset=done, entry=entry, name=name))
                self._names += len(name.encode("utf-8", "surrogateescape")) + 24
            self._buffer += block
            done += len(block)
            if len(block) < BLOCK:
                return
            block = _read(source)
            if not block:
                return

    def close(self) -> Totals:
        if self._buffer or self._pieces:
            self._flush()
        self._write(Index(sizes=tuple(self._sizes), check=self._hash.intdigest()).pack())
        return self.totals

    def _limit(self) -> int:
        return self._chunk if self._text else OTHER_CHUNK

    def _flush(self) -> None:
        if not self._buffer and not self._pieces:
            return
        raw = bytes(self._buffer)
        # Lanes of equal length hold a whole chunk, so a chunk is coded at once.
        coded = self._kinds.encode(raw, self._text)
        head = ChunkHead(
            kind=coded.kind, number=self.totals.chunks, offset=self.totals.raw, raw=len(raw),
            payload=len(coded.payload), check=xxhash.xxh3_64_intdigest(raw), symbols=coded.symbols, lanes=coded.lanes,
            adapt=coded.adapt, pieces=tuple(self._pieces),
        ).pack()  # fmt: skip
        self._write(head)
        self._write(coded.payload)
        self._hash.update(raw)
        self._sizes.append((len(head) + len(coded.payload), len(raw)))
        before = self.totals.kinds.get(coded.kind, (0, 0))
        self.totals.kinds[coded.kind] = before[0] + len(raw), before[1] + len(coded.payload)
        self.totals.raw += len(raw)
        self.totals.chunks += 1
        self._buffer.clear()
        self._pieces.clear()
        self._names = 0
        self._watch(self.totals.raw)

    def _write(self, data: bytes) -> None:
        self._out.write(data)
        self.totals.written += len(data)


def _read(source: BinaryIO | None) -> bytes:
    """A whole block, or what is left: pipes give short reads."""
    parts: list[bytes] = []
    left = BLOCK if source is not None else 0
    while source is not None and left and (part := source.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
