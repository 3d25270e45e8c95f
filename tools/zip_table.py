"""`steno zip` beside general-purpose compressors: sizes, and the time to code and to decode.

Writes docs/evidence/zip.json and the table in README.md.

    STENO_DATA=/path/to/texts python tools/zip_table.py [--quick]

Every size is that of a whole file, headers and all; the model that steno needs is not in it, and is named beside it.
Several files are one archive for steno and one stream, in the same order, for the others. Each file is decoded and
compared; the times are those of one run.
"""

import argparse
import bz2
import io
import json
import lzma
import os
import platform
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import brotli
import pyppmd
import zstandard

from steno.cli._zip import open_neural
from steno.codecs import identity
from steno.codecs.container import Entry
from steno.codecs.kinds import Coded, Kinds
from steno.codecs.writer import Writer

ROOT = Path(__file__).resolve().parents[1]
EVIDENCE = ROOT / "docs" / "evidence" / "zip.json"
README = ROOT / "README.md"
BEGIN, END = "<!-- zip -->", "<!-- /zip -->"

PEERS: dict[str, Callable[[bytes], bytes]] = {
    "xz -9e": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
    "zstd -19": lambda data: zstandard.ZstdCompressor(level=19).compress(data),
    "bz2 -9": lambda data: bz2.compress(data, 9),
    "brotli 11": lambda data: brotli.compress(data, quality=11, lgwin=24),
}


def _ppmd(data: bytes) -> bytes:
    coder = pyppmd.Ppmd7Encoder(8, 64 << 20)
    return coder.encode(data) + coder.flush()


PEERS["PPMd (order 8, 64 MB)"] = _ppmd


class Timed(Kinds):
    """Counts the time of the decoding that checks every chunk."""

    decoding = 0.0

    def _decode(self, coded: Coded, length: int) -> bytes:
        began = time.perf_counter()
        try:
            return super()._decode(coded, length)
        finally:
            Timed.decoding += time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description="steno zip beside other compressors")
    parser.add_argument("--quick", action="store_true", help="small corpora only; writes nothing")
    parser.add_argument("--only", action="append", help="one corpus, by name; repeatable; writes evidence of these")
    args = parser.parse_args()
    quick, only = args.quick, args.only
    neural, model_bytes = open_neural("nib", 0)
    record = json.loads(EVIDENCE.read_text()) if only and EVIDENCE.exists() else {"corpora": {}}
    record |= {"model": "nib", "model_bytes": model_bytes, "machine": platform.machine(), "cores": os.cpu_count()}
    for name, (note, files) in corpora().items():
        if (quick and sum(map(len, files.values())) > 300_000) or (only and name not in only):
            continue
        raw = b"".join(files.values())
        sizes = {peer: len(pack(raw)) for peer, pack in PEERS.items()}
        Timed.decoding, out, began = 0.0, io.BytesIO(), time.perf_counter()
        kinds = Timed(neural)
        writer = Writer(out, kinds, identity.header(neural))
        for path, data in files.items():
            writer.add(path, Entry.FILE, io.BytesIO(data))
        totals = writer.close()
        total = time.perf_counter() - began
        record["corpora"][name] = {
            "note": note,
            "bytes": len(raw),
            "steno": totals.written,
            "peers": sizes,
            "encode_s": total - Timed.decoding,
            "decode_s": Timed.decoding,
            "passes": kinds.passes.passes,
            "plain_passes": kinds.passes.plain,
        }
        print(json.dumps({name: record["corpora"][name]}), flush=True)
        if not quick:
            save(record)
    return 0


def save(record: dict) -> None:
    """The evidence, and the README's table from it."""
    EVIDENCE.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    README.write_text(f"{before}{BEGIN}\n{table(record)}{END}{rest.split(END)[1]}", encoding="utf-8")


def table(record: dict) -> str:
    """The README's table."""
    peers = list(PEERS)
    lines = [
        f"| bytes | original | steno zip (model: {record['model_bytes'] / 1e6:.1f} MB, not counted) | "
        + " | ".join(peers)
    ]
    lines[0] += " | against xz |"
    lines.append("|---" * (len(peers) + 4) + "|")
    for name, row in record["corpora"].items():
        cells = [f"{row['peers'][peer]:,}" for peer in peers]
        gain = 1 - row["steno"] / row["peers"]["xz -9e"]
        lines.append(
            f"| {name}{row['note']} | {row['bytes']:,} | **{row['steno']:,}** | {' | '.join(cells)} | {-gain:+.1%} |"
        )
    return "\n".join(lines) + "\n"


def corpora() -> dict[str, tuple[str, dict[str, bytes]]]:
    """name -> (note, files). What is not on the machine is left out, and named."""
    data = Path(os.environ.get("STENO_DATA", "data")) / "text"
    canterbury = sorted((data / "canterbury").glob("*")) if (data / "canterbury").is_dir() else []
    found: dict[str, tuple[str, dict[str, bytes]]] = {}

    def put(name: str, note: str, paths: list[Path], most: int | None = None) -> None:
        files = {
            path.name if name != "Python" else str(path): path.read_bytes()[:most] for path in paths if path.is_file()
        }
        if files:
            found[name] = note, files
        else:
            print(f"left out: {name} is not on this machine", file=sys.stderr)

    manifest = json.loads((ROOT / "docs" / "nib" / "manifest.json").read_text(encoding="utf-8"))
    library = Path(json.__file__).parents[1]
    held = [library / e["name"].removeprefix("stdlib/") for e in manifest["held_out"] if e["bucket"] == "stdlib"]
    put("Python", ", held-out standard library", held)
    put("Canterbury", ", all 11 files", canterbury)
    for name, note in (("alice29.txt", " ¹"), ("lcet10.txt", ""), ("plrabn12.txt", " ¹"), ("asyoulik.txt", " ²")):
        put(name, note, [p for p in canterbury if p.name == name])
    put("wikitext-2", ", validation set", [data / "wikitext-2" / "valid.txt"])
    put("tinyshakespeare", " ²", [data / "tinyshakespeare" / "input.txt"])
    dickens = data / "silesia-a" / "dickens.zip"
    if dickens.is_file():
        with zipfile.ZipFile(dickens) as archive:
            found["dickens"] = ", first MB ²", {"dickens": archive.read(archive.namelist()[0])[:1_000_000]}
    return found


if __name__ == "__main__":
    sys.exit(main())
