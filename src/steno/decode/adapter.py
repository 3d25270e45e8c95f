"""Adapter files: the trained part of a drafter and its card, in one safetensors file.

Weights are stored in float16 and computed with in float32. The card travels in the file's metadata: the method, the
model it was trained on (`Model.origin`), the recipe, and what it scored on held-out text. A file that is cut, damaged,
of another method or of another model is refused in words.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from steno.core import Model
from steno.core.errors import DataError, ModelError, OutputError
from steno.core.files import write_bytes

Floats = npt.NDArray[np.float32]

SCHEMA = 1
METADATA = "steno_adapter"
SUFFIX = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class AdapterCard:
    """What an adapter is.

    method  name of the drafter it belongs to
    model   name of the model it was trained on, for people
    base    `Model.origin` of that model, for the check
    layers  layers whose hidden states it works on
    recipe  what it was trained by: a recipe in TOML
    scores  what it reached on held-out text, by name
    """

    method: str
    model: str
    base: str
    layers: tuple[int, ...]
    recipe: str
    scores: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter in memory: float32 tensors by name."""

    card: AdapterCard
    tensors: Mapping[str, Floats]

    def write(self, path: Path, *, force: bool = False) -> None:
        """Write the file whole or not at all. Raises OutputError where it exists and `force` is not given."""
        if path.suffix != SUFFIX:
            raise OutputError(f"{path}: an adapter's name ends in {SUFFIX}. Name another file.")
        if path.exists() and not force:
            raise OutputError(f"{path} exists. Replace it with --force, or name another file.")
        with np.errstate(over="ignore"):
            halves = {name: tensor.astype(np.float16) for name, tensor in sorted(self.tensors.items())}
        for name, half in halves.items():
            if not np.isfinite(half).all():
                raise DataError(f"{path}: tensor {name} does not fit float16. Train with a lower schedule.lr.")
        about = {"schema": SCHEMA, "digest": _digest(halves), "card": asdict(self.card)}
        # One entry: safetensors writes several in no fixed order, and equal adapters should be equal files.
        write_bytes(path, save(halves, {METADATA: json.dumps(about)}))


def load(path: Path, method: str) -> Adapter:
    """Read the adapter of a method, once per state of the file.

    Raises ModelError where there is none or it is another method's, DataError where it is cut or damaged.
    """
    try:
        state = path.stat()
    except OSError:
        raise ModelError(
            f"{method}: there is no adapter {path}. Train one: steno train {method.rpartition('.')[2]} --out DIR"
        ) from None
    found = _load(path, state.st_size, state.st_mtime_ns)
    if found.card.method != method:
        raise ModelError(f"{method}: {path} is an adapter of {found.card.method}. Name one that was trained for it.")
    return found


def check_base(adapter: Adapter, model: Model, path: Path) -> None:
    """Raise ModelError where the adapter was trained on another model."""
    card = adapter.card
    if card.base != model.origin:
        raise ModelError(
            f"{card.method}: {path} was trained on {card.model} ({card.base[:12]}), and {model.name} "
            f"({model.origin[:12]}) is another model. Train one on it: set model in the recipe."
        )


@lru_cache(maxsize=16)
def _load(path: Path, size: int, changed: int) -> Adapter:
    again = f"Copy it again, or train it anew ({size} bytes are there)."
    try:
        with safe_open(path, "np") as file:
            told = (file.metadata() or {}).get(METADATA, "{}")
            halves = {name: cast("npt.NDArray[np.float16]", file.get_tensor(name)) for name in sorted(file.keys())}
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"Adapter {path}: cut or damaged ({str(error).splitlines()[0]}). {again}") from None
    try:
        about = json.loads(told)
        if about.get("schema") != SCHEMA:
            raise DataError(
                f"Adapter {path}: no steno adapter of schema {SCHEMA}. Name a file that `steno train` wrote."
            )
        if about["digest"] != _digest(halves):
            raise DataError(f"Adapter {path}: damaged (its checksum does not match). {again}")
        card = AdapterCard(**{**about["card"], "layers": tuple(about["card"]["layers"])})
    except (AttributeError, KeyError, TypeError, ValueError):
        raise DataError(f"Adapter {path}: its card cannot be read. {again}") from None
    tensors = {name: np.ascontiguousarray(half, np.float32) for name, half in halves.items()}
    for tensor in tensors.values():
        tensor.flags.writeable = False
    return Adapter(card=card, tensors=tensors)


def _digest(halves: Mapping[str, "npt.NDArray[np.float16]"]) -> str:
    whole = hashlib.sha256()
    for name, half in sorted(halves.items()):
        whole.update(f"{name}{half.dtype}{half.shape}".encode())
        whole.update(np.ascontiguousarray(half).data)
    return whole.hexdigest()
