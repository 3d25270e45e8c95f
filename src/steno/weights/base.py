"""The room's protocol: a weights knob turns one model folder into a smaller one.

A method says what to store instead of which weights (`recode`); everything else is done here once: the source is
checked, tensors stream one by one into a folder that appears whole or not at all, configuration and tokenizer are
copied, and the plan that made the folder and a ledger of its bytes are written beside the weights.

Shape legend of the room: N rows (output channels), K columns (inputs), R rank, G groups of a row.
"""

import json
import shutil
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

import numpy as np

from steno.core import Knob, Plan
from steno.core.errors import ModelError, OutputError
from steno.models.checkpoint import INDEX, Checkpoint, Entry

from ._layers import shape
from ._ledger import NAME, Layer, Ledger
from ._output import Array, Piece, Shard, new_folder

Progress = Callable[[str, int, int], None]
"""What is being done, how much of it is done, and how much there is."""

Calibration = Sequence[Sequence[int]]
"""Token ids of calibration texts."""

PLAN = "steno_plan.toml"


@dataclass(frozen=True, kw_only=True)
class Recoded:
    """What stands in place of one weight [N, K]: `pieces` in the order of the arrays that `make` returns, and for the
    ledger its form in words and the relative error."""

    pieces: tuple[Piece, ...]
    make: Callable[[], tuple[Sequence[Array], Layer]]
    drops: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Recoding:
    """A method's answer: weights to replace by name, keys to set in config.json, and files to add by name."""

    weights: Mapping[str, Recoded]
    config: Mapping[str, object]
    files: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True)
class WeightsKnob(Knob):
    """Base of the weights knobs."""

    def apply(
        self,
        source: Path,
        out: Path,
        *,
        calibration: Calibration | None = None,
        force: bool = False,
        progress: Progress | None = None,
    ) -> Ledger:
        """Write the model folder `source`, compressed, as the new folder `out`.

        calibration  token ids of texts like those the model will see, for methods that look at activations
        force        replace `out` where it exists

        Raises ModelError for a missing or damaged source, OutputError where `out` exists or cannot be written,
        PromptError for calibration that is missing where it is needed, or does not fit the model.
        """
        say = progress or _silent
        source, out = Path(source), Path(out)
        if out.resolve() == source.resolve() or source.resolve() in out.resolve().parents:
            raise OutputError(f"{out} lies in the source folder, which is never changed. Name another folder.")
        model = Checkpoint(source)
        model.quantization  # noqa: B018  (raises for schemes that cannot be read)
        with new_folder(out, force) as folder:
            scratch = folder / ".scratch"
            recoding = self.recode(model, scratch, calibration, say)
            ledger = _write(self.name, model, recoding, folder, say)
            shutil.rmtree(scratch, ignore_errors=True)
            (folder / PLAN).write_text(Plan((self,)).to_toml(), encoding="utf-8")
            others = sum(p.stat().st_size for p in folder.iterdir() if p.suffix != ".safetensors")
            ledger = replace(ledger, other_bytes=others)
            (folder / NAME).write_text(ledger.to_json(), encoding="utf-8")
        return ledger

    @abstractmethod
    def recode(
        self, source: Checkpoint, scratch: Path, calibration: Calibration | None, progress: Progress
    ) -> Recoding:
        """What to store instead of which weights. `scratch` may be made and filled; it does not stay."""
        ...


def _silent(what: str, done: int, total: int) -> None:
    pass


def _write(method: str, source: Checkpoint, recoding: Recoding, folder: Path, say: Progress) -> Ledger:
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
    lines, rows, places, done = [], [], {}, 0
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
        weight, _, suffix = name.rpartition("_")
        integers = f"{name}_scale" in source.entries
        if suffix in ("scale", "shape", "point") and source.holds(weight.removesuffix("_zero")):
            continue
        if suffix == "packed" and weight.endswith(".weight"):
            name, integers = weight, True
        if name in drops:
            continue
        dtype = source.entry(f"{name}_scale").dtype if integers else entry.dtype
        out[name] = Piece(name, dtype, shape(source, name) if integers else entry.shape, "untouched")
    return out


def _plain(source: Checkpoint, name: str, piece: Piece) -> Array:
    """The tensor as `piece` says, checked: floats are finite."""
    entry = source.entries.get(name)
    if entry is None or entry.dtype != piece.dtype:
        return numbers(source.linear(name, (piece.shape[0], piece.shape[1])).dense(), piece.dtype)
    if entry.dtype in ("F64", "F32", "F16", "BF16"):
        source.floats(name)
    return source.raw(name)


def numbers(values: np.ndarray, dtype: str) -> Array:
    """float32 as the array of a piece of `dtype`, rounded to nearest, ties to even."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return values.astype({"F64": np.float64, "F32": np.float32, "F16": np.float16}[dtype])


def float_dtype(source: Checkpoint, name: str) -> str:
    """Safetensors' name of the floats the weight `name` is stored in, or that its integers stand for."""
    entry: Entry = source.entries.get(f"{name}_scale") or source.entry(name)
    if entry.dtype not in ("F32", "F16", "BF16"):
        raise ModelError(f"{entry.file}: {name} is stored as {entry.dtype}; F32, F16 and BF16 can be compressed.")
    return entry.dtype


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
