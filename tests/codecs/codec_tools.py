"""A predictor whose scores are a table's rows, a spelling by single bytes, and files made with them: microseconds."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steno.codecs import identity
from steno.codecs.container import Entry
from steno.codecs.kinds import Kinds
from steno.codecs.neural import Neural
from steno.codecs.reader import read_header, walk
from steno.codecs.writer import Writer

VOCAB = 258
WORDS = [
    "the",
    "coder",
    "takes",
    "a",
    "symbol",
    "and",
    "its",
    "share",
    "of",
    "the",
    "whole,",
    "then",
    "an",
    "interval;",
    "what",
    "is",
    "left",
    "over",
    "pays",
    "for",
    "all",
    "others.",
]
TEXT = " ".join(WORDS[(i * i * 7 + i // 3) % 21] + (f" {i}\n" if i % 9 == 0 else "") for i in range(1200)).encode()


@dataclass(frozen=True, eq=False)
class Rows:
    """Scores of what follows depend on the last symbol only; learned by counting `TEXT`, so that text compresses."""

    limit: int = 256
    start: int = 257
    vocab: int = VOCAB
    name: str = "rows"
    fingerprint: str = "ab" * 32

    def open(self, streams: int) -> "RowStreams":
        return RowStreams(self, streams)


class RowStreams:
    def __init__(self, model: Rows, streams: int) -> None:
        self.model, self.kept = model, [0] * streams
        self.width = 0

    def room(self) -> int:
        return self.model.limit - max(self.kept) % self.model.limit

    def ahead(self, symbols: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        assert 1 <= symbols.shape[1] <= self.room()
        self.width = symbols.shape[1]
        return SCORES[symbols]

    def keep(self, counts: Sequence[int]) -> None:
        assert all(0 <= n <= self.width for n in counts)
        self.kept = [a + b for a, b in zip(self.kept, counts, strict=True)]


class ByBytes:
    """Symbol = byte; 256 stands for nothing, 257 begins a stream."""

    def encode_bytes(self, data: bytes) -> list[int]:
        return list(data)

    def decode_bytes(self, ids: list[int]) -> bytes:
        return bytes(i for i in ids if i < 256)

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""


def _scores() -> npt.NDArray[np.float32]:
    counts = np.full((VOCAB, VOCAB), 0.02)
    np.add.at(counts, (np.frombuffer(TEXT[:-1], np.uint8), np.frombuffer(TEXT[1:], np.uint8)), 1)
    # Eighths of a nat: a maths library's last bit must not matter.
    return (np.round(np.log(counts / counts.sum(axis=1, keepdims=True)) * 8) / 8).astype(np.float32)


SCORES = _scores()


def neural(limit: int = 256) -> Neural:
    return Neural.of(Rows(limit=limit), ByBytes())


def pack(files: dict[str, bytes], *, chunk: int = 4096, model: Neural | None = None) -> bytes:
    """A .sz file of `files`."""
    model = model or neural()
    out = io.BytesIO()
    writer = Writer(out, Kinds(model), identity.header(model), chunk=chunk)
    for name, data in files.items():
        writer.add(name, Entry.FILE, io.BytesIO(data))
    writer.close()
    return out.getvalue()


def unpack(data: bytes, model: Neural | None = None) -> bytes:
    model = model or neural()
    source = io.BytesIO(data)
    identity.check(read_header(source), model)
    return b"".join(raw for _, raw in walk(source, Kinds(model)))
