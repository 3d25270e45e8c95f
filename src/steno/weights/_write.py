"""Write a recoded model, one weight at a time, with a ledger of every byte."""

import json
import shutil
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path

from steno.core.errors import OutputError
from steno.models.checkpoint import INDEX, Checkpoint

from ._layers import shape
from ._ledger import NAME, Layer, Ledger, Line
from ._output import Array, Piece, Shard
from ._recoding import Recoded, Recoding, numbers

Progress = Callable[[str, int, int], None]
"""What is being done, how much of it is done, and how much there is."""

PLAN = "steno_plan.toml"


def write(method: str, source: Checkpoint, recoding: Recoding, folder: Path, say: Progress) -> Ledger:
    kept = _untouched(source, recoding)
    jobs: dict[str, list[tuple[tuple[Piece, ...], Recoded | str]]] = {}
    for name, recoded in recoding.weights.items():
        entry = source.entries.get(name) or source.entry(f"{name}_packed")
        jobs.setdefault(entry.file.name, []).append((recoded.pieces, recoded))
    for name, piece in kept.items():
        entry = source.entries.get(name) or source.entry(f"{name}_packed")
        jobs.setdefault(entry.file.name, []).append(((piece,), name))
    needed = sum(piece.bytes for rows in jobs.values() for pieces, _ in rows for piece in pieces)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(f"{folder.parent} has {free:,} bytes free, the model needs {needed:,}. Name another place.")
    lines: list[Line] = []
    rows: list[Layer] = []
    places: dict[str, str] = {}
    done = 0
    total = sum(map(len, jobs.values()))
    for file in sorted(jobs):
        with Shard(folder / file, [p for pieces, _ in jobs[file] for p in pieces]) as shard:
            for pieces, job in jobs[file]:
                say("writing", done, total)
                done += 1
                if isinstance(job, str):
                    arrays: Sequence[Array] = (_plain(source, job, pieces[0]),)
                else:
                    arrays, row = job.make()
                    rows.append(row)
                for piece, array in zip(pieces, arrays, strict=True):
                    shard.put(piece.name, array)
                    places[piece.name] = file
        lines += shard.lines
    say("writing", total, total)
    size = sum(line.bytes for line in lines if line.part != "header")
    if (source.path / INDEX).exists():
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    _side_files(source, recoding, folder)
    sizes = [prod(shape(source, n)) for n in recoding.weights]
    sizes += [prod(source.entry(n).shape) for r in recoding.weights.values() for n in r.drops]
    return Ledger(
        method=method,
        lines=tuple(lines),
        layers=tuple(rows),
        parameters=sum(sizes) + sum(prod(p.shape) for p in kept.values()),
        source_bytes=sum(file.stat().st_size for file in {e.file for e in source.entries.values()}),
        other_bytes=0,
    )


def _untouched(source: Checkpoint, recoding: Recoding) -> dict[str, Piece]:
    """Weights stored as before. What the source holds as integers and the method leaves alone becomes floats again."""
    drops = {d for r in recoding.weights.values() for d in r.drops} | set(recoding.weights)
    out: dict[str, Piece] = {}
    for name, entry in source.entries.items():
        base, _, suffix = name.rpartition("_")
        if suffix in ("scale", "shape", "point") and source.holds(base.removesuffix("_zero")):
            continue
        weight = base if suffix == "packed" and base.endswith(".weight") else name
        scale = source.entries.get(f"{weight}_scale")
        if weight in drops:
            continue
        form = (scale.dtype, shape(source, weight)) if scale else (entry.dtype, entry.shape)
        out[weight] = Piece(weight, *form, "untouched")
    return out


def _plain(source: Checkpoint, name: str, piece: Piece) -> Array:
    """The tensor as `piece` says, checked: floats are finite."""
    entry = source.entries.get(name)
    if entry is None or entry.dtype != piece.dtype:
        return numbers(source.linear(name, (piece.shape[0], piece.shape[1])).dense(), piece.dtype)
    if entry.dtype in ("F64", "F32", "F16", "BF16"):
        source.floats(name)
    return source.raw(name)


def _side_files(source: Checkpoint, recoding: Recoding, folder: Path) -> None:
    """Everything of the source that is not weights: tokenizer, generation settings, licence."""
    for path in sorted(source.path.iterdir()):
        ours = path.name in (NAME, PLAN, INDEX, "config.json") or path.name.startswith(".")
        if path.is_file() and not ours and path.suffix not in (".safetensors", ".bin", ".pt", ".pth", ".gguf"):
            shutil.copyfile(path, folder / path.name)
    config = {k: v for k, v in source.config.items() if k != "quantization_config"} | dict(recoding.config)
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, text in recoding.files.items():
        (folder / name).write_text(text, encoding="utf-8")
