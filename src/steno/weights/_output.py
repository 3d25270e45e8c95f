"""A model folder that appears whole or not at all, and safetensors files written one tensor at a time.

The folder is written beside its final name and renamed into place, so that Ctrl-C, a full disk or an error leaves
nothing behind. A safetensors header needs every shape before the first byte, so a file is described first (`Piece`) and
filled afterwards; no more than one weight is ever in memory.
"""

import errno
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from steno.core.errors import OutputError

from ._ledger import Line

Array = npt.NDArray[np.generic]

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I8": 1, "U8": 1}


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor of an output file. `dtype` is safetensors' name; the array of a BF16 piece holds its bits."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    part: str

    @property
    def bytes(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]


@contextmanager
def new_folder(out: Path, force: bool) -> Iterator[Path]:
    """A temporary folder that takes the name `out` when the block ends well, and vanishes when it does not.

    Raises OutputError where `out` exists already (unless it is an empty folder, or `force`), cannot be written, or
    where the disk is full.
    """
    if out.exists() and not force and not (out.is_dir() and not any(out.iterdir())):
        raise OutputError(f"{out} exists already. Name another folder, or pass --force to replace it.")
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file. Name a folder.")
    part, old = out.with_name(f".{out.name}.part"), out.with_name(f".{out.name}.old")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
            out.rename(old)
        part.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        why = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else (error.strerror or str(error))
        raise OutputError(f"{out} cannot be written: {why}. Nothing was left behind. Name another place.") from None
    finally:
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(part, ignore_errors=True)


class Shard:
    """One safetensors file: described by `pieces`, then filled in any order."""

    def __init__(self, path: Path, pieces: Sequence[Piece]) -> None:
        # Wide numbers first, as safetensors itself does, so that every tensor is aligned.
        pieces = sorted(pieces, key=lambda p: (-ITEM_BYTES[p.dtype], p.name))
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        self._places: dict[str, tuple[int, Piece]] = {}
        at = 0
        for piece in pieces:
            header[piece.name] = {
                "dtype": piece.dtype,
                "shape": list(piece.shape),
                "data_offsets": [at, at + piece.bytes],
            }
            self._places[piece.name] = (at, piece)
            at += piece.bytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._start = 8 + len(text)
        self.bytes = self._start + at
        self.lines = (
            Line(path.name, "", "header", self._start),
            *(Line(path.name, p.name, p.part, p.bytes) for p in pieces),
        )
        self._left = set(self._places)
        self._file = open(path, "wb")  # noqa: SIM115
        self._file.write(len(text).to_bytes(8, "little") + text)

    def put(self, name: str, array: Array) -> None:
        """Write the tensor `name`."""
        at, piece = self._places[name]
        data = np.ascontiguousarray(array)
        assert (data.nbytes, data.shape) == (piece.bytes, piece.shape), (name, data.shape, data.dtype, piece)
        self._file.seek(self._start + at)
        self._file.write(data.reshape(-1).view(np.uint8).data)
        self._left.discard(name)

    def close(self) -> None:
        """Flush to the disk, where a full one speaks up."""
        assert not self._left, f"never written: {sorted(self._left)[:3]}"
        self._file.close()

    def __enter__(self) -> "Shard":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()
