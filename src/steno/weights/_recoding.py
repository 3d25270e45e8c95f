"""A method's answer: what to store in place of which weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from steno.core.errors import ModelError
from steno.models.checkpoint import Checkpoint, Entry

from ._ledger import Layer
from ._output import Array, Piece


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


def numbers(values: npt.NDArray[np.float32], dtype: str) -> Array:
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
