"""Numbers that a form is fitted with, too many for a record's fields: a safetensors file, read once per process.

A file is a path, or the name of one that ships in `tables/` beside this room. What is read is shared by all sessions
like the model's weights, and like them it is no part of a cache's bytes.
"""

from functools import cache
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from steno.core import KVShape
from steno.core.errors import KnobError

from .base import CacheKnob

SHIPPED = Path(__file__).parent / "tables"


def read(knob: CacheKnob, field: str, shape: KVShape) -> dict[str, Tensor]:
    """The tensors of the file that a field names. Raises KnobError where there is none, or it was fitted to another
    model.
    """
    name = str(getattr(knob, field))
    path = SHIPPED / f"{name}.safetensors"
    path = path if path.exists() else Path(name)
    if not path.is_file():
        shipped = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.safetensors")))
        raise KnobError(f"{knob.name}: {field} names a file, and there is none at {name!r}. Shipped are: {shipped}.")
    tensors = _load(path, path.stat().st_mtime_ns)
    fitted, ours = tuple(tensors["shape"].tolist()), (shape.layers, shape.query_heads, shape.key_heads, shape.head_dim)
    if fitted != ours:
        words = "layers, query heads, key heads and head width"
        raise KnobError(
            f"{knob.name}: {field} {name!r} was fitted to a model of {fitted} {words}, and this one has {ours}. "
            f"Fit it anew with steno.{knob.name}.fit."
        )
    return {key: tensor.to(shape.device) for key, tensor in tensors.items()}


def write(path: Path, shape: tuple[int, int, int, int], tensors: dict[str, Tensor]) -> None:
    """Save tensors that were fitted to a model of `shape` = (layers, query heads, key heads, head width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"shape": Tensor(shape).int(), **{k: t.contiguous() for k, t in tensors.items()}}, path)


@cache
def _load(path: Path, written: int) -> dict[str, Tensor]:
    return load_file(path)
