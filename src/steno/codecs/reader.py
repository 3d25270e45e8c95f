"""A .sz stream back into chunks: in order from a pipe, by place from a file, or what is left of a damaged one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import xxhash

from .base import Corrupt, LimitExceeded, Truncated
from .container import (
    FOOTER_BYTES,
    FRAME_BYTES,
    MAGIC,
    MARK,
    SYNC,
    ChunkHead,
    Header,
    Index,
    checked,
    header_length,
)
from .kinds import Kinds


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """Raw bytes [start, stop) that damage took. `stop` is -1 where nobody knows how many they were."""

    start: int
    stop: int
    why: str


def read_header(source: BinaryIO) -> Header:
    """The header of a stream, read from its beginning. Raises Corrupt, Truncated, LimitExceeded."""
    start = _exactly(source, 12, "the file ends within its header")
    rest = _exactly(source, header_length(start) - 12, "the file ends within its header")
    return Header.unpack(checked(start + rest, "the header")[12:])


def walk(source: BinaryIO, kinds: Kinds, most: int = 1 << 62) -> Iterator[tuple[ChunkHead, bytes]]:
    """Every chunk after the header, decoded and checked, and at the end the index against all of them.

    Nothing of a chunk is given out before its hash fits. Raises Corrupt, Truncated, and LimitExceeded above `most` raw
    bytes.
    """
    digest, sizes, offset = xxhash.xxh3_64(), list[tuple[int, int]](), 0
    while True:
        mark = _exactly(source, 4, f"the file ends after chunk {len(sizes) - 1}, before its index")
        if mark == MARK:
            break
        if mark != SYNC:
            raise Corrupt(f"chunk {len(sizes)} does not begin as one")
        head, record = _chunk_head(source, mark)
        if head.number != len(sizes) or head.offset != offset:
            raise Corrupt(f"chunk {len(sizes)} is out of place")
        if offset + head.raw > most:
            raise LimitExceeded(f"the file holds more than {most} bytes. Raise --max-bytes if you trust it.")
        payload = _exactly(source, head.payload, f"the file ends within chunk {head.number}")
        raw = kinds.decode(head, payload)
        digest.update(raw)
        sizes.append((record + head.payload, head.raw))
        offset += head.raw
        yield head, raw
    index = _index(source, mark)
    if index.sizes != tuple(sizes) or index.check != digest.intdigest():
        raise Corrupt("the index does not fit the chunks before it")
    if source.read(1):
        raise Corrupt("there is something behind the end of the file")


class Archive:
    """A .sz file that can seek: its chunks by place, without decoding the others."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self.header = read_header(source)
        first = source.tell()
        end = source.seek(0, 2)
        if end - first < FOOTER_BYTES:
            raise Truncated("the file ends before its index. Use --salvage for what there is.")
        source.seek(end - FOOTER_BYTES)
        footer = source.read(FOOTER_BYTES)
        size = int.from_bytes(footer[:4], "little")
        if footer[4:] != MAGIC[::-1] or size > end - FOOTER_BYTES - first:
            raise Truncated("the file does not end with its index. Use --salvage for what there is.")
        start = source.seek(end - FOOTER_BYTES - size)
        if source.read(4) != MARK:
            raise Corrupt("the index is not where the end of the file says. Use --salvage.")
        self.index = _index(source, MARK)
        self.places = [first]
        for size, _ in self.index.sizes:
            self.places.append(self.places[-1] + size)
        if self.places[-1] != start:
            raise Corrupt("the index does not fit the length of the file. Use --salvage.")
        self.raw = sum(raw for _, raw in self.index.sizes)

    def heads(self) -> Iterator[ChunkHead]:
        for number in range(len(self.index.sizes)):
            yield self._at(number)

    def read(self, kinds: Kinds, start: int, stop: int) -> Iterator[bytes]:
        """Raw bytes [start, stop), decoding only the chunks they lie in."""
        offset = 0
        for number, (_, raw) in enumerate(self.index.sizes):
            low, high = max(start, offset), min(stop, offset + raw)
            if low < high:
                head = self._at(number)
                if head.offset != offset:
                    raise Corrupt(f"chunk {number} is out of place")
                yield kinds.decode(head, self._source.read(head.payload))[low - offset : high - offset]
            offset += raw

    def _at(self, number: int) -> ChunkHead:
        self._source.seek(self.places[number])
        mark = self._source.read(4)
        if mark != SYNC:
            raise Corrupt(f"chunk {number} does not begin where the index says")
        head, record = _chunk_head(self._source, mark)
        if (record + head.payload, head.raw) != self.index.sizes[number] or head.number != number:
            raise Corrupt(f"chunk {number} does not fit the index")
        return head


def salvage(data: bytes, kinds: Kinds) -> Iterator[tuple[ChunkHead, bytes] | Lost]:
    """Whatever of a damaged file still fits its hashes, in order, and what is missing between.

    It needs no header and no index: chunk records are found by their mark and believed by their CRC.
    """
    at, offset = 0, 0
    while (at := data.find(SYNC, at)) >= 0:
        try:
            length = FRAME_BYTES + int.from_bytes(data[at + 4 : at + 6], "little") + 4
            if at + length > len(data):
                raise Truncated("the record ends early")
            head = ChunkHead.unpack(checked(data[at : at + length], "a record")[FRAME_BYTES:])
            if head.offset < offset:
                raise Corrupt("the chunk was there before")
        except (Corrupt, Truncated):
            at += 1
            continue
        if head.offset > offset:
            yield Lost(start=offset, stop=head.offset, why="its chunk's record is damaged")
        offset = head.offset + head.raw
        try:
            yield head, kinds.decode(head, data[at + length : at + length + head.payload])
            at += length + head.payload
        except (Corrupt, Truncated) as error:
            yield Lost(start=head.offset, stop=offset, why=str(error))
            at += length
    if not _ends(data, offset):
        yield Lost(start=offset, stop=-1, why="the end of the file is missing or damaged")


def _ends(data: bytes, offset: int) -> bool:
    """Whether the index is there and agrees that `offset` raw bytes are all."""
    size = int.from_bytes(data[-FOOTER_BYTES : -FOOTER_BYTES + 4], "little")
    record = data[-FOOTER_BYTES - size : -FOOTER_BYTES]
    try:
        index = Index.unpack(checked(record, "the index")[8:]) if record[:4] == MARK else None
    except Corrupt:
        return False
    return index is not None and sum(raw for _, raw in index.sizes) == offset


def _chunk_head(source: BinaryIO, mark: bytes) -> tuple[ChunkHead, int]:
    size = _exactly(source, 2, "the file ends within a record")
    rest = _exactly(source, int.from_bytes(size, "little") + 4, "the file ends within a record")
    return ChunkHead.unpack(checked(mark + size + rest, "a chunk's record")[FRAME_BYTES:]), FRAME_BYTES + len(rest)


def _index(source: BinaryIO, mark: bytes) -> Index:
    size = _exactly(source, 4, "the file ends within its index")
    rest = _exactly(source, int.from_bytes(size, "little") + 4, "the file ends within its index")
    index = Index.unpack(checked(mark + size + rest, "the index")[8:])
    footer = _exactly(source, FOOTER_BYTES, "the file ends within its footer")
    if footer != (8 + len(rest)).to_bytes(4, "little") + MAGIC[::-1]:
        raise Corrupt("the footer is damaged")
    return index


def _exactly(source: BinaryIO, count: int, otherwise: str) -> bytes:
    """`count` bytes. Read piecewise: a damaged length must not allocate what is not there."""
    parts: list[bytes] = []
    left = count
    while left:
        part = source.read(min(left, 1 << 20))
        if not part:
            raise Truncated(f"{otherwise}. Use --salvage for what there is.")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
