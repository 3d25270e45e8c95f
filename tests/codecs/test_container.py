"""The file format: golden bytes, hostile input, damage, ranges, limits. A wrong byte is never given out."""

import hashlib
import io
import zlib

import numpy as np
import pytest
from codec_tools import TEXT, neural, pack, unpack

from steno.codecs import identity
from steno.codecs._wire import Fields, varint
from steno.codecs.base import Corrupt, LimitExceeded, Truncated, WrongModel
from steno.codecs.container import MAGIC, SYNC, ChunkHead, Entry, Header, Kind, Piece, header_length
from steno.codecs.kinds import Kinds, is_text
from steno.codecs.neural import Neural
from steno.codecs.reader import Archive, Lost, read_header, salvage, walk
from steno.codecs.writer import Writer
from steno.core.errors import DataError, StenoError

RNG = np.random.default_rng(11)
NOISE = RNG.integers(0, 256, 3000).astype(np.uint8).tobytes()
RECORDS = b"".join((i * i % 977).to_bytes(4, "little") + b"\0\1\2\3" for i in range(700))
FILES = {
    "a.txt": TEXT[:2500],
    "empty": b"",
    "noise": NOISE,
    "records": RECORDS,
    "b.txt": "naïve – 中文 🙂\n".encode() * 9,
}


def test_golden_bytes():
    """The same input gives the same file on every machine and in every version that has this coder."""
    data = pack({"a.txt": TEXT[:2500], "b": bytes(range(256)) * 4})
    assert data[:10] == MAGIC + bytes([1, 0])
    assert hashlib.sha256(data).hexdigest() == "87820679c6d510950a90b73ac5239dc876a3586acfdc0ffedc09a96d96fae198"


@pytest.mark.parametrize(
    "data",
    [b"", b"x", b"\0", b"\xff" * 9, b"\xc3", TEXT[:1000] + b"\xff\xfe\0" + TEXT[:1000], NOISE, RECORDS, b"a" * 9000,
     "é".encode() * 3000, bytes(range(256)), MAGIC + SYNC, pack({"x": TEXT[:99]})],
)  # fmt: skip
def test_any_bytes_come_back(data: bytes):
    assert unpack(pack({"x": data})) == data


@pytest.mark.parametrize("size", [1024, 1025, 4096, 65536])
@pytest.mark.parametrize("length", [1023, 1024, 1025, 4095, 4097, 9000])
def test_chunk_boundaries(size: int, length: int):
    data = (TEXT * 4)[:length]
    assert unpack(pack({"x": data, "y": data[::-1]}, chunk=size)) == data + data[::-1]


def test_nothing_grows_by_more_than_its_records():
    packed = pack({"x": NOISE})
    assert len(packed) <= len(NOISE) + 160
    (head,) = Archive(io.BytesIO(packed)).heads()
    assert head.kind is Kind.STORED


def test_kinds_are_chosen_by_content():
    heads = list(Archive(io.BytesIO(pack(FILES))).heads())
    assert [h.kind for h in heads] == [Kind.NEURAL, Kind.BYTES, Kind.NEURAL]
    assert is_text("中文 🙂\n".encode() * 50)
    assert is_text(("中" * 40).encode()[:-1])
    assert not is_text(NOISE)
    assert not is_text(RECORDS)


def test_names_and_places_of_entries():
    names = [(p.name, p.at, p.offset) for h in Archive(io.BytesIO(pack(FILES, chunk=1024))).heads() for p in h.pieces]
    starts = [name for name, _, offset in names if offset == 0]
    assert starts == list(FILES)


def test_a_range_decodes_only_its_chunks():
    data = TEXT[:2500] * 3
    archive = Archive(io.BytesIO(pack({"x": data}, chunk=1024)))
    seen: list[int] = []

    class Counting(Kinds):
        def decode(self, head: ChunkHead, payload: bytes) -> bytes:
            seen.append(head.number)
            return super().decode(head, payload)

    for start, stop in [(0, 1), (1000, 1100), (5, 5), (len(data) - 3, len(data) + 50), (0, len(data))]:
        assert b"".join(archive.read(Counting(neural()), start, stop)) == data[start:stop]
    # Blocks of 64 KiB are the grain of the writer, so this short file is one chunk or a few.
    assert max(seen) == len(archive.index.sizes) - 1


def test_output_is_streamed_and_input_may_be_a_pipe():
    class Pipe(io.RawIOBase):
        """Gives one byte at a time and cannot seek."""

        def __init__(self, data: bytes) -> None:
            self.data = io.BytesIO(data)

        def read(self, count: int = -1) -> bytes:
            return self.data.read(min(count, 1))

    out = io.BytesIO()
    writer = Writer(out, Kinds(neural()), identity.header(neural()), chunk=1024)
    writer.add("x", Entry.FILE, Pipe(TEXT[:3000]))  # type: ignore[arg-type]
    writer.close()
    source = Pipe(out.getvalue())
    read_header(source)  # type: ignore[arg-type]
    assert b"".join(raw for _, raw in walk(source, Kinds(neural()))) == TEXT[:3000]  # type: ignore[arg-type]


# ---- damage


def flips_and_cuts(data: bytes, count: int, seed: int):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        if rng.random() < 0.5:
            bad = bytearray(data)
            bad[rng.integers(len(data))] ^= 1 << rng.integers(8)
            yield bytes(bad)
        else:
            yield data[: rng.integers(len(data))]


def never_wrong(count: int, seed: int) -> tuple[int, int]:
    """(readers that refused, salvages that lost something) among `count` damaged files."""
    files = {"a": TEXT[:60], "b": NOISE[:40], "c": RECORDS[:300], "d": TEXT[700:740]}
    whole = b"".join(files.values())
    data = pack(files, chunk=1024)
    model, refused, lost = neural(), 0, 0
    header = identity.header(model)
    for bad in flips_and_cuts(data, count, seed):
        got = b""
        try:
            source = io.BytesIO(bad)
            assert read_header(source) == header
            for head, raw in walk(source, Kinds(model)):
                assert raw == whole[head.offset : head.offset + len(raw)]
                got += raw
        except StenoError:
            refused += 1
        else:
            # A bit at the end of a code may lie beyond what tells symbols apart: then the content is complete.
            assert got == whole
        for item in salvage(bad, Kinds(model)):
            if isinstance(item, Lost):
                lost += 1
            else:
                head, raw = item
                assert raw == whole[head.offset : head.offset + len(raw)]
    return refused, lost


def test_damage_is_never_silent():
    refused, lost = never_wrong(250, 1)
    assert refused >= 240
    assert lost > 200


@pytest.mark.slow
def test_damage_is_never_silent_in_20000_cases():
    refused, _ = never_wrong(20_000, 2)
    assert refused >= 19_500


def test_salvage_gives_every_chunk_but_the_damaged_one():
    data = pack({"x": TEXT[:2000], "n": NOISE, "y": TEXT[:500]}, chunk=2048)
    places = Archive(io.BytesIO(data)).places
    bad = bytearray(data)
    bad[places[2] - 5] ^= 16  # in the payload of the second chunk
    items = list(salvage(bytes(bad), Kinds(neural())))
    assert [i.start for i in items if isinstance(i, Lost)] == [2000]
    assert b"".join(i[1] for i in items if not isinstance(i, Lost)) == TEXT[:2000] + TEXT[:500]
    # Even without header and index.
    items = list(salvage(data[places[0] : places[-1]], Kinds(neural())))
    assert b"".join(i[1] for i in items if not isinstance(i, Lost)) == TEXT[:2000] + NOISE + TEXT[:500]
    assert [(i.start, i.stop) for i in items if isinstance(i, Lost)] == [(5500, -1)]


# ---- hostile input


def sealed(head: bytes) -> bytes:
    return head + zlib.crc32(head).to_bytes(4, "little")


def chunk_record(body: bytes) -> bytes:
    return sealed(SYNC + len(body).to_bytes(2, "little") + body)


HEAD = identity.header(neural()).pack()
PLAIN = {"number": 0, "offset": 0, "raw": 4, "payload": 4, "check": 0}
HOSTILE = {
    "a huge raw length": chunk_record(bytes([0]) + varint(0) + varint(0) + varint(1 << 59) + varint(4) + bytes(9)),
    "a huge payload": chunk_record(bytes([0]) + varint(0) + varint(0) + varint(4) + varint(1 << 40) + bytes(9)),
    "more symbols than bytes": chunk_record(
        bytes([1]) + varint(0) + varint(0) + varint(4) + varint(4) + bytes(8) + varint(1 << 30) + bytes([1, 1, 0])
    ),
    "no lanes": chunk_record(bytes([1]) + varint(0) * 2 + varint(4) * 2 + bytes(8) + varint(4) + bytes([0, 1, 0])),
    "an unknown kind": chunk_record(bytes([9]) + bytes(20)),
    "a number without end": chunk_record(bytes([0]) + b"\xff" * 20),
    "fields that run out": chunk_record(bytes([0, 0])),
    "fields left over": ChunkHead(kind=Kind.STORED, **PLAIN).pack()[:-4],
    "many entries": chunk_record(bytes([0]) + varint(0) * 2 + varint(4) * 2 + bytes(8) + varint(1 << 15)),
    "the wrong number": ChunkHead(kind=Kind.STORED, **{**PLAIN, "number": 5}).pack() + b"abcd",
    "the wrong place": ChunkHead(kind=Kind.STORED, **{**PLAIN, "offset": 5}).pack() + b"abcd",
    "the wrong hash": ChunkHead(kind=Kind.STORED, **PLAIN).pack() + b"abcd",
    "bytes that are no lzma": ChunkHead(kind=Kind.LZMA, **PLAIN).pack() + b"abcd",
    "lanes in a chunk of bytes": ChunkHead(kind=Kind.BYTES, **PLAIN, symbols=3, lanes=2).pack() + b"abcd",
    "nothing": b"",
    "no record": b"ZZZZ" * 9,
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_records_are_refused(name: str):
    source = io.BytesIO(HEAD + HOSTILE[name])
    read_header(source)
    with pytest.raises(DataError):
        list(walk(source, Kinds(neural())))
    list(salvage(HEAD + HOSTILE[name], Kinds(neural())))


def test_a_chunk_that_decodes_to_more_than_it_says_stops_there():
    import lzma

    from steno.codecs.kinds import LZMA

    bomb = lzma.compress(bytes(1 << 24), lzma.FORMAT_RAW, filters=[LZMA])
    head = ChunkHead(kind=Kind.LZMA, number=0, offset=0, raw=10, payload=len(bomb), check=0)
    with pytest.raises(Corrupt, match="chunk 0"):
        Kinds(neural()).decode(head, bomb)


def test_the_reader_grants_only_so_many_bytes():
    source = io.BytesIO(pack({"x": TEXT[:2000]}))
    read_header(source)
    with pytest.raises(LimitExceeded, match="--max-bytes"):
        list(walk(source, Kinds(neural()), most=1999))


def test_headers():
    with pytest.raises(Corrupt, match=r"no \.sz file"):
        header_length(b"PK\3\4" + bytes(10))
    with pytest.raises(LimitExceeded, match="version 2"):
        header_length(MAGIC + bytes([2, 0, 0, 0]))
    with pytest.raises(Truncated):
        header_length(MAGIC)
    bad = Header(model=bytes(16), spelling=bytes(8), golden=bytes(8), name="x", coder=77).pack()
    with pytest.raises(Corrupt, match="coder 77"):
        read_header(io.BytesIO(bad))


def test_trailing_bytes_are_refused():
    with pytest.raises(Corrupt, match="behind the end"):
        unpack(pack({"x": b"abc"}) + b"!")


def test_the_wrong_model_is_named():
    model = neural()
    right = identity.header(model)
    for change, words in [
        ({"model": b"x" * 16}, "another model|written with the model"),
        ({"spelling": b"y" * 8}, "another tokenizer"),
        ({"golden": b"z" * 8}, "computes other numbers"),
    ]:
        fields = {"model": right.model, "spelling": right.spelling, "golden": right.golden, "name": "rows"} | change
        with pytest.raises(WrongModel, match=words):
            identity.check(Header(**fields), model)
    with pytest.raises(WrongModel, match="--model"):
        unpacked = io.BytesIO(pack({"x": TEXT[:900]}))
        read_header(unpacked)
        list(walk(unpacked, Kinds(None)))


def test_a_coder_that_fails_its_check_is_not_used(monkeypatch: pytest.MonkeyPatch):
    """What does not decode to the input is never written: the next kind takes its place."""
    monkeypatch.setattr(Neural, "decode", lambda self, *a, **k: (b"wrong", None))
    monkeypatch.setattr(
        Kinds, "passes", property(lambda self: type("P", (), {"add": lambda *a: None})()), raising=False
    )
    kinds = Kinds.__new__(Kinds)
    object.__setattr__(kinds, "neural", neural())
    coded = kinds.encode(TEXT[:2000], True)
    assert coded.kind in (Kind.BYTES, Kind.LZMA, Kind.STORED)


def test_records_round_trip():
    head = ChunkHead(
        kind=Kind.NEURAL, number=3, offset=1 << 40, raw=1 << 20, payload=77, check=2**64 - 1, symbols=1 << 19, lanes=16,
        adapt=False, pieces=(
            Piece(at=0, offset=5, entry=Entry.PROGRAM, name="é/\udcff"),
            Piece(at=9, offset=0, entry=Entry.FILE, name=""),
        ),
    )  # fmt: skip
    assert ChunkHead.unpack(head.pack()[6:-4]) == head
    for value in (0, 1, 127, 128, 2**60):
        assert Fields(varint(value)).varint(2**60) == value


def test_entries_that_lie_about_their_place_are_refused():
    head = ChunkHead(
        kind=Kind.STORED, number=0, offset=0, raw=4, payload=4, check=0,
        pieces=(Piece(at=0, offset=1 << 50, entry=Entry.FILE, name="x"),),
    )  # fmt: skip
    with pytest.raises(Corrupt, match="before its own beginning"):
        ChunkHead.unpack(head.pack()[6:-4])
