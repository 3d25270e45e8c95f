"""Memory and disk: live storages each counted once, the process's peak, model files by part."""

import json
import resource
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, cast

from steno.core import CacheSpec, Model, Plan

from .base import Bytes

if TYPE_CHECKING:
    from torch import Tensor

FAR = "far"
"""The part of a cache that is kept where attention does not run: in another memory, or in a file."""


def measure(model: Model, plan: Plan = Plan(), rows: Sequence[Sequence[int]] = (), folder: Path | None = None) -> Bytes:
    """Weights of `model`, and the cache of a session in the plan's cache form that holds the ids `rows`.

    `folder` adds the sizes of the model's files and bits per cached number, which leave out what is kept far.
    """
    cache: dict[str, int] = {}
    if rows:
        session = model.open(len(rows), max(map(len, rows)) + 1, cache_form(plan))
        session.prefill(rows)
        cache = session.cache_bytes()
    near = sum(count for part, count in cache.items() if part != FAR)
    tokens = sum(map(len, rows))
    values = kv_values(folder) if folder else None
    return Bytes(
        weights=model.weight_bytes(),
        cache=cache,
        cache_tokens=tokens,
        bits_per_value=8 * near / (values * tokens) if values and tokens and cache else None,
        process_peak=process_peak(),
        files=file_bytes(folder) if folder else {},
    )


def cache_form(plan: Plan) -> CacheSpec | None:
    """The plan's cache form, None where it has none."""
    return cast("CacheSpec | None", plan.one("cache"))


def storage_bytes(*roots: object) -> int:
    """Bytes of all torch storages reachable from `roots`, each counted once however many views it has."""
    found: dict[tuple[str, int], int] = {}
    for tensor in tensors(roots):
        storage = tensor.untyped_storage()
        found[str(tensor.device), storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def tensors(root: object) -> "Iterable[Tensor]":
    """Every torch tensor reachable from `root` through containers, records and attributes of objects."""
    torch = sys.modules.get("torch")
    if torch is None:
        return
    seen: set[int] = set()
    todo: list[object] = [root]
    while todo:
        item = todo.pop()
        if id(item) in seen or isinstance(item, str | bytes | int | float | type | ModuleType | FunctionType | None):
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            yield cast("Tensor", item)
        elif isinstance(item, Mapping):
            todo.extend(cast(Mapping[object, object], item).values())
        elif isinstance(item, list | tuple | set | frozenset):
            todo.extend(cast(list[object], item))
        else:
            todo.extend(_parts(item))


def process_peak() -> int:
    """Highest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak if sys.platform == "darwin" else peak * 1024


def file_bytes(folder: Path) -> dict[str, int]:
    """Sizes of a model folder's files by part; a file linked twice is counted once."""
    out: dict[str, int] = {}
    seen: set[tuple[int, int]] = set()
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        status = path.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        part = _part(path.name)
        out[part] = out.get(part, 0) + status.st_size
    return out


def kv_values(folder: Path) -> int | None:
    """Numbers a full cache holds per token, keys and values of all layers; None where the config does not say."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    config = config.get("text_config", config)
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    heads = config.get("num_attention_heads", config.get("n_head"))
    width = config.get("hidden_size", config.get("n_embd"))
    if not (layers and heads and width):
        return None
    return 2 * layers * (config.get("num_key_value_heads") or heads) * (config.get("head_dim") or width // heads)


def _parts(item: object) -> list[object]:
    out: list[object] = []
    if is_dataclass(item) and not isinstance(item, type):
        out += [getattr(item, f.name, None) for f in fields(item)]
    out += list(getattr(item, "__dict__", {}).values())
    for kind in type(item).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        out += [getattr(item, name, None) for name in ((slots,) if isinstance(slots, str) else slots)]
    return out


def _part(name: str) -> str:
    if name.endswith((".safetensors", ".bin", ".gguf", ".pt", ".pth")):
        return "weights"
    if name.startswith(("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "chat_template")):
        return "tokenizer"
    if name.endswith(".model"):
        return "tokenizer"
    return "config" if name.endswith(".json") else "other"
