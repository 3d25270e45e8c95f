"""A training recipe: one frozen record, read from TOML, that holds everything that decides the model.

Unknown keys are refused with the nearest known name, values out of range with the range.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import GenericAlias
from typing import TypeVar, get_args, get_origin

from steno.core.errors import nearest
from steno.train.base import RecipeError

SCHEMA = 1
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A place text comes from; `path` may hold environment variables, and a source that is not there is skipped."""

    name: str
    kind: str
    bucket: str
    path: str = ""
    licence: str = ""
    globs: tuple[str, ...] = ("*.txt",)
    skip: tuple[str, ...] = ()
    held_out: bool = False

    def __post_init__(self) -> None:
        if self.kind == "files" and not (self.path and self.licence):
            raise RecipeError(f"Recipe source {self.name!r}: a source of files needs both path and licence; add them.")


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A kind of text. `weight`: its share of the training tokens. `hold_out_*`: how much of it only validates."""

    name: str
    weight: float
    cap_mb: float = 1e9
    source_cap_mb: float = 1e9
    hold_out_files: int = 0
    hold_out_bytes: int = 0
    hold_out_min_file: int = 4000

    def __post_init__(self) -> None:
        within(f"bucket {self.name!r}", "weight", self.weight, 0, 1e6)


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec:
    """Byte-level BPE: its vocabulary and how much text it is trained on."""

    vocab: int = 4096
    sample_mb: float = 40.0

    def __post_init__(self) -> None:
        within("tokenizer", "vocab", self.vocab, 260, 65_536)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The Llama shape. Matrix dimensions are multiples of 32, so that int8 kernels have no ragged edge."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    head_dim: int = 64
    context: int = 2048
    rope_theta: float = 10_000.0

    def __post_init__(self) -> None:
        for name in ("width", "ffn"):
            if getattr(self, name) % 32:
                raise RecipeError(f"Recipe shape: {name} must be a multiple of 32; got {getattr(self, name)}.")
        if self.heads % self.kv_heads:
            raise RecipeError(
                f"Recipe shape: heads must be a multiple of kv_heads; got {self.heads} and {self.kv_heads}."
            )


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How it is trained. With a time budget the schedule runs by the fraction of time spent, else by steps."""

    steps: int
    batch: int
    sequence: int
    micro_batch: int = 0
    lr: float = 2e-3
    optimizer: str = "adamw"
    warmup_steps: int = 200
    decay: str = "cosine"
    decay_share: float = 0.4
    final_lr: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    clip: float = 1.0
    compile: bool = False
    checkpoint_s: float = 120.0
    eval_every: int = 500
    log_every: int = 10
    seed: int = 1

    def __post_init__(self) -> None:
        within("schedule", "steps", self.steps, 1, 1e9)
        within("schedule", "batch", self.batch, 1, 1e6)
        within("schedule", "sequence", self.sequence, 8, 1e6)
        within("schedule", "lr", self.lr, 1e-8, 1)
        within("schedule", "warmup_steps", self.warmup_steps, 0, 1e6)
        within("schedule", "decay_share", self.decay_share, 0.01, 1)
        _one_of("schedule", "decay", self.decay, ("cosine", "wsd"))
        _one_of("schedule", "optimizer", self.optimizer, ("adamw", "muon"))
        if self.micro_batch and self.batch % self.micro_batch:
            raise RecipeError(
                f"Recipe schedule: batch must be a multiple of micro_batch; got {self.batch} and {self.micro_batch}."
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Data, tokenizer, shape and schedule of one model."""

    steno_train: int
    name: str
    source: tuple[Source, ...]
    bucket: tuple[Bucket, ...]
    tokenizer: TokenizerSpec
    shape: Shape
    schedule: Schedule

    def __post_init__(self) -> None:
        if self.steno_train != SCHEMA:
            raise RecipeError(
                f"Recipe {self.name!r}: steno_train must be {SCHEMA} for this steno; got {self.steno_train}."
            )
        known = [bucket.name for bucket in self.bucket]
        for source in self.source:
            if source.bucket not in known:
                raise RecipeError(
                    f"Recipe source {source.name!r}: bucket {source.bucket!r} is not declared. "
                    f"{nearest(source.bucket, known)}"
                )


def load(path: str | Path) -> Recipe:
    """Read a recipe. Raises RecipeError with the file, the key and the remedy."""
    return record(Recipe, read(path), f"Recipe {path}")


def read(path: str | Path) -> dict[str, object]:
    """The tables of a recipe file. Raises RecipeError where it is missing or no TOML."""
    path = Path(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"Recipe {path}: no such file. Give the path of a TOML recipe.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"Recipe {path}: not valid TOML: {error}.") from None


def record(kind: type[_T], table: Mapping[str, object], where: str) -> _T:
    """A record from its table; tables within it become the records that its fields name."""
    known = {field.name: field for field in fields(kind)}  # pyright: ignore[reportArgumentType]
    values: dict[str, object] = {}
    for key, value in table.items():
        if key not in known:
            raise RecipeError(f"{where}: unknown key {key!r}. {nearest(key, known)}")
        values[key] = _value(known[key].type, value, f"{where}, {key}")
    try:
        return kind(**values)
    except TypeError as error:
        raise RecipeError(f"{where}: {str(error).split(') ')[-1]}; add it.") from None


def _value(kind: object, value: object, where: str) -> object:
    if get_origin(kind) is tuple and isinstance(kind, GenericAlias) and isinstance(value, list):
        return tuple(_value(get_args(kind)[0], item, where) for item in value)
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, dict):
        return record(kind, value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(kind, type) or type(value) is not kind:
        raise RecipeError(f"{where}: must be of type {getattr(kind, '__name__', kind)}; got {value!r}.")
    return value


def within(who: str, field: str, value: float, low: float, high: float) -> None:
    """Raises RecipeError where a field is out of its closed range."""
    if not low <= value <= high:
        raise RecipeError(f"Recipe {who}: {field} must lie in [{low:g}, {high:g}]; got {value:g}.")


def _one_of(who: str, field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise RecipeError(f"Recipe {who}: {field} must be one of {', '.join(allowed)}; got {value!r}.")
