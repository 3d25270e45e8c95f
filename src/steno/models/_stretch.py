"""Rows of the slot cache taken out as arrays and put back; see `core.Keeper`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from steno.core.errors import CapsError, DataError
from steno.core.stretch import Storable, Stretch
from steno.core.tier import CacheSpec

from ._slots import SlotCache, SlotLayer

if TYPE_CHECKING:
    from ._model import HFModel

Floats = npt.NDArray[np.float32]
Arrays = dict[str, npt.NDArray[np.generic]]


def take(cache: SlotCache, row: int, start: int, length: int, sealed: int) -> Stretch:
    """The tokens [start, length) of a row of which `sealed` are in the tier: parts of the tier, and open tokens."""
    arrays: Arrays = {}
    halves: list[str] = []
    meta: dict[str, object] = {"sealed": sealed}

    def put(name: str, tensor: Tensor) -> None:
        tensor = tensor.detach().cpu().contiguous()
        if tensor.dtype == torch.bfloat16:
            # numpy has no bfloat16: its bits.
            halves.append(name)
            tensor = tensor.view(torch.int16)
        arrays[name] = tensor.numpy().copy()

    if cache.tier is not None:
        tensors, told = _storable(cache).fork([row]).state()
        meta["tier"] = told
        for name, tensor in tensors.items():
            put(f"tier.{name}", tensor)
    for layer in cache.live():
        for name, held in zip(("keys", "values", "queries"), layer.buffers(), strict=False):
            put(f"{layer.index}.{name}", held[row, :, start - sealed if start else 0 : length - sealed])
    meta["bfloat16"] = halves
    return Stretch(start=start, stop=length, arrays=arrays, meta=meta)


@torch.inference_mode()
def give(cache: SlotCache, row: int, stretch: Stretch, form: CacheSpec | None, model: "HFModel") -> int:
    """Put a stretch into a row and return how many of its tokens are sealed. Raises DataError where it does not fit."""
    try:
        sealed = int(cast(int, stretch.meta["sealed"]))
        halves = set(cast(list[str], stretch.meta["bfloat16"]))
        tensors = {name: _tensor(array, name in halves) for name, array in stretch.arrays.items()}
        told = stretch.meta.get("tier")
        if (told is None) != (cache.tier is None) or (form.due(stretch.stop) if form else 0) != sealed:
            raise DataError("the stored tokens are not in this session's cache form")
        first = stretch.start - sealed if stretch.start else 0
        count = stretch.stop - sealed - first
        # Ahead of the writing: what a stretch that does not fit leaves behind is wiped as leftovers are.
        cache.high[row] = max(int(cache.high[row]), first + count)
        for layer in _ready(cache, tensors, model.device, first + count):
            for name, held in zip(("keys", "values", "queries"), layer.buffers(), strict=False):
                part = tensors[f"{layer.index}.{name}"]
                if tuple(part.shape) != (held.shape[1], count, held.shape[3]) or part.dtype != held.dtype:
                    raise DataError("the stored tokens have another shape or number form than this session's")
                held[row, :, first : first + count] = part.to(held.device)
        if cache.tier is not None:
            assert form is not None
            single = form.open(model.kv_shape(1, cache.capacity))
            assert isinstance(single, Storable)
            mine = {n.removeprefix("tier."): t.to(model.device) for n, t in tensors.items() if n.startswith("tier.")}
            single.load(mine, cast(Mapping[str, object], told))
            if single.sealed != (sealed,):
                raise DataError("the stored tier has another length than its row")
            _storable(cache).adopt(row, single)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise DataError(f"the stored tokens do not fit this session: {error or type(error).__name__}") from None
    return sealed


@torch.inference_mode()
def read(cache: SlotCache, row: int, span: tuple[int, int], sealed: int, model: "HFModel") -> tuple[Floats, Floats]:
    """Keys and values [L, G, T, D] of the tokens `span` of a row, whose first `sealed` are in the tier."""
    start, length = span
    shape = model.kv_shape(1, cache.capacity)
    tier = cache.tier.fork([row]) if cache.tier is not None and sealed > start else None
    both: list[tuple[Tensor, Tensor]] = []
    for index, layer in enumerate(cache.layers):
        assert isinstance(layer, SlotLayer)
        k, v = torch.zeros(2, shape.key_heads, 0, shape.head_dim, device=shape.device).unbind(0)
        if layer.is_initialized:
            k, v = (held[row, :, max(start - sealed, 0) : length - sealed].float() for held in layer.pair())
        if tier is not None:
            keys, values, where = tier.materialise(index)
            whole = torch.arange(sealed, device=where.device)
            if where.ndim > 2 or where.shape[1] != sealed or not torch.equal(where[0], whole):
                raise CapsError("this cache form does not hold every token in every head, so its tokens have no KV")
            k, v = torch.cat([keys[0, :, start:], k], 1), torch.cat([values[0, :, start:], v], 1)
        both.append((k, v))
    k, v = (torch.stack(x).cpu().numpy() for x in zip(*both, strict=True))
    return k, v


@torch.inference_mode()
def write(cache: SlotCache, row: int, slot: int, pair: tuple[Floats, Floats], model: "HFModel") -> None:
    """Put keys and values [L, G, T, D] into the open slots from `slot` on."""
    count = pair[0].shape[2]
    tensors: dict[str, Tensor] = {}
    for name, x in zip(("keys", "values"), pair, strict=True):
        tensors |= {f"{i}.{name}": torch.tensor(part, dtype=model.net.dtype) for i, part in enumerate(x)}
    for layer in _ready(cache, tensors, model.device, slot + count):
        for name, held in zip(("keys", "values"), layer.pair(), strict=True):
            held[row, :, slot : slot + count] = tensors[f"{layer.index}.{name}"].to(held.device)
    cache.high[row] = max(int(cache.high[row]), slot + count)


def _ready(cache: SlotCache, tensors: Mapping[str, Tensor], device: torch.device, slots: int) -> list[SlotLayer]:
    """The layers that `tensors` speak of, with room for what is coming."""
    out: list[SlotLayer] = []
    for layer in cache.layers:
        assert isinstance(layer, SlotLayer)
        part = tensors.get(f"{layer.index}.keys")
        if part is None:
            if layer.is_initialized:
                raise DataError(f"the stored tokens lack layer {layer.index}")
            continue
        if not layer.is_initialized:
            k, v = (tensors[f"{layer.index}.{name}"][None, :, :0] for name in ("keys", "values"))
            layer.lazy_initialization(*(x.expand(cache.batch, -1, -1, -1).to(device) for x in (k, v)))
        if cache.observer is not None and layer.queries is None and f"{layer.index}.queries" in tensors:
            held = tensors[f"{layer.index}.queries"]
            keys = layer.pair()[0]
            layer.queries = keys.new_zeros(cache.batch, held.shape[0], cache.size, held.shape[2])
        out.append(layer)
    cache.reserve(slots)
    return out


def _storable(cache: SlotCache) -> Storable:
    if not isinstance(cache.tier, Storable):
        raise CapsError("this cache form cannot be taken apart into tensors, so its rows cannot be stored")
    return cache.tier


def _tensor(array: npt.NDArray[np.generic], half: bool) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.view(torch.bfloat16) if half else tensor
