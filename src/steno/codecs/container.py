"""The records of a .sz file, as bytes and back; docs/format.md is the specification.

    file    header, chunk*, index, footer
    header  MAGIC, major, minor, u16 length, body, u32 CRC-32 of all before
    chunk   SYNC, u16 length, body, u32 CRC-32 of all before, payload
    index   MARK, u32 length, body, u32 CRC-32 of all before
    footer  u32 length of the index record, MAGIC backwards

Lengths are believed only after the CRC of the record that holds them; content only after the XXH3 of its raw bytes.
"""

import itertools
import zlib
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

from ._wire import Fields, text, varint
from .base import Corrupt, LimitExceeded, Truncated

MAGIC = b"\x89STZ\r\n\x1a\n"
SYNC = b"\xf5STK"
MARK = b"\xf5STI"
MAJOR, MINOR = 1, 0
CODER = 1
"""Number of the coder: tables, frequencies, tree, mixer and range coder together."""

RAW_MOST = 1 << 24
"""Most bytes a chunk may stand for."""

FOOTER_BYTES = 4 + len(MAGIC)
FRAME_BYTES = len(SYNC) + 2
NAME_MOST = 4096
TOTAL_MOST = 1 << 60


E = TypeVar("E", bound=IntEnum)


class Kind(IntEnum):
    """How a chunk's payload is coded."""

    STORED = 0
    NEURAL = 1
    BYTES = 2
    LZMA = 3


class Entry(IntEnum):
    """What a name stands for."""

    FILE = 0
    PROGRAM = 1
    FOLDER = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Who wrote the file, and with which model.

    model     fingerprint of the predictor, 16 bytes (zeros: none was at hand, no chunk needs one)
    spelling  hash of what the symbols stand for, 8 bytes
    golden    hash of frequencies computed on the writer's machine, 8 bytes
    """

    model: bytes
    spelling: bytes
    golden: bytes
    name: str
    coder: int = CODER

    def pack(self) -> bytes:
        body = bytes([self.coder]) + self.model + self.spelling + self.golden + text(self.name)
        head = MAGIC + bytes([MAJOR, MINOR]) + len(body).to_bytes(2, "little") + body
        return head + zlib.crc32(head).to_bytes(4, "little")

    @staticmethod
    def unpack(body: bytes) -> "Header":
        fields = Fields(body)
        coder = fields.byte()
        header = Header(
            model=fields.take(16), spelling=fields.take(8), golden=fields.take(8), name=fields.text(NAME_MOST),
            coder=coder,
        )  # fmt: skip
        if coder != CODER:
            raise Corrupt(f"it was written by coder {coder}, and this version of steno has coder {CODER}")
        return header


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A file or a part of one in a chunk: it begins `at` bytes into the chunk and `offset` bytes into the file."""

    at: int
    offset: int
    entry: Entry
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkHead:
    """Everything about a chunk but its payload.

    offset   place of its first raw byte among all raw bytes
    raw      raw bytes
    payload  bytes of payload
    check    XXH3 of the raw bytes
    symbols, lanes, adapt: how a NEURAL or BYTES payload was coded
    """

    kind: Kind
    number: int
    offset: int
    raw: int
    payload: int
    check: int
    symbols: int = 0
    lanes: int = 1
    adapt: bool = True
    pieces: tuple[Piece, ...] = ()

    def pack(self) -> bytes:
        body = bytes([self.kind]) + varint(self.number) + varint(self.offset) + varint(self.raw) + varint(self.payload)
        body += self.check.to_bytes(8, "little")
        if self.kind in (Kind.NEURAL, Kind.BYTES):
            body += varint(self.symbols) + bytes([self.lanes, self.adapt])
        body += varint(len(self.pieces))
        for piece in self.pieces:
            body += varint(piece.at) + varint(piece.offset) + bytes([piece.entry]) + text(piece.name)
        head = SYNC + len(body).to_bytes(2, "little") + body
        return head + zlib.crc32(head).to_bytes(4, "little")

    @staticmethod
    def unpack(body: bytes) -> "ChunkHead":
        fields = Fields(body)
        kind = _member(Kind, fields.byte(), "kind of chunk")
        number, offset = fields.varint(TOTAL_MOST), fields.varint(TOTAL_MOST)
        raw = fields.varint(RAW_MOST)
        payload = fields.varint(RAW_MOST)
        check = int.from_bytes(fields.take(8), "little")
        symbols, lanes, adapt = 0, 1, 1
        if kind in (Kind.NEURAL, Kind.BYTES):
            symbols = fields.varint(raw)
            lanes, adapt = fields.byte(), fields.byte()
            if not 1 <= lanes <= 64 or adapt > 1:
                raise Corrupt(f"a chunk with {lanes} lanes and mode {adapt}")
        pieces = tuple(
            Piece(
                at=fields.varint(raw), offset=fields.varint(TOTAL_MOST),
                entry=_member(Entry, fields.byte(), "kind of entry"), name=fields.text(NAME_MOST),
            )
            for _ in range(fields.varint(1 << 16))
        )  # fmt: skip
        fields.end()
        if any(piece.offset > offset + piece.at for piece in pieces):
            raise Corrupt("an entry of a chunk begins before its own beginning")
        if any(a.at > b.at for a, b in itertools.pairwise(pieces)):
            raise Corrupt("the entries of a chunk are out of order")
        return ChunkHead(
            kind=kind, number=number, offset=offset, raw=raw, payload=payload, check=check, symbols=symbols,
            lanes=lanes, adapt=bool(adapt), pieces=pieces,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """Where the chunks stand. sizes: (bytes of the record, raw bytes) of each; check: XXH3 of all raw bytes."""

    sizes: tuple[tuple[int, int], ...]
    check: int

    def pack(self) -> bytes:
        """The index record and the footer."""
        body = varint(len(self.sizes)) + b"".join(varint(a) + varint(b) for a, b in self.sizes)
        body += self.check.to_bytes(8, "little")
        record = MARK + len(body).to_bytes(4, "little") + body
        record += zlib.crc32(record).to_bytes(4, "little")
        return record + len(record).to_bytes(4, "little") + MAGIC[::-1]

    @staticmethod
    def unpack(body: bytes) -> "Index":
        fields = Fields(body)
        sizes = tuple((fields.varint(TOTAL_MOST), fields.varint(RAW_MOST)) for _ in range(fields.varint(len(body))))
        check = int.from_bytes(fields.take(8), "little")
        fields.end()
        return Index(sizes=sizes, check=check)


def checked(record: bytes, what: str) -> bytes:
    """`record` without its CRC. Raises Corrupt where it does not fit."""
    if zlib.crc32(record[:-4]) != int.from_bytes(record[-4:], "little"):
        raise Corrupt(f"{what} is damaged (its CRC does not fit)")
    return record[:-4]


def header_length(start: bytes) -> int:
    """Bytes of the whole header, from its first 12. Raises Corrupt for another file, LimitExceeded for a newer one."""
    if len(start) < 12:
        raise Truncated("the file ends within its header")
    if start[:8] != MAGIC:
        raise Corrupt("this is no .sz file: it does not begin as one")
    if start[8] != MAJOR:
        raise LimitExceeded(f"the file has format version {start[8]}; this version of steno reads {MAJOR}. Upgrade.")
    return 12 + int.from_bytes(start[10:12], "little") + 4


def _member(kind: type[E], value: int, what: str) -> E:
    try:
        return kind(value)
    except ValueError:
        raise Corrupt(f"there is no {what} {value}") from None
