"""Hugging Face checkpoint folders as numpy arrays, checked as they are read; no torch.

A folder holds `config.json` and `*.safetensors` (one file, or shards named by `model.safetensors.index.json`). Number
forms: F32, F16, BF16, and the integer forms of compressed-tensors ("int-quantized", "naive-quantized",
"pack-quantized"). A matrix whose rows have one scale each stays whole numbers, so that a backend with integer
arithmetic need not round it again, and so does one with scales per group of columns.

Every fault is a ModelError that names the file, the tensor and the remedy: a checkpoint that loads is whole, finite and
of the shapes the config says.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from steno.core.errors import ModelError

F32 = npt.NDArray[np.float32]
I8 = npt.NDArray[np.int8]
Raw = npt.NDArray[np.generic]

INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000

# BF16 has no numpy form; its bits are handed out.
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I8": "|i1",
    "U8": "|u1",
}
_FLOATS = ("F64", "F32", "F16", "BF16")
_AGAIN = "The file is damaged or was not downloaded whole; fetch it again."


@dataclass(frozen=True, slots=True)
class Linear:
    """A weight matrix [N, K]: `floats`, or `ints` [N, K] times `scales` [N], or [N, G] for G groups of columns."""

    floats: F32 | None = None
    ints: I8 | None = None
    scales: F32 | None = None

    def dense(self) -> F32:
        """The matrix as float32 [N, K]."""
        if self.floats is not None:
            return self.floats
        assert self.ints is not None
        assert self.scales is not None
        if self.scales.ndim == 1:
            return self.ints.astype(np.float32) * self.scales[:, None]
        grouped = self.ints.reshape(*self.scales.shape, -1).astype(np.float32)
        grouped *= self.scales[:, :, None]
        return grouped.reshape(self.ints.shape)


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies: bytes [start, stop) of `file`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Checkpoint:
    """A checkpoint folder. Tensors are read when asked for; `unread` names those nobody asked for.

    Raises ModelError where the folder or a header is unusable.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise ModelError(
                f"model: {self.path} is not a folder. Give a folder that holds config.json and *.safetensors."
            )
        self.config = read_json(self.path / "config.json")
        self.entries = _entries(self.path)
        self._maps: dict[Path, npt.NDArray[np.uint8]] = {}
        self._read: set[str] = set()

    @cached_property
    def quantization(self) -> Mapping[str, Any] | None:
        """The config's quantization record, None for a plain checkpoint. Raises ModelError for other schemes."""
        record = self.config.get("quantization_config")
        if record is None:
            return None
        method = record.get("quant_method") if isinstance(record, dict) else record
        if method != "compressed-tensors":
            raise ModelError(
                f"{self.path / 'config.json'}: quantization_config.quant_method is {method!r}; only compressed-tensors "
                f"integer forms can be read here. Use --backend hf, or the unquantised model."
            )
        return record

    @cached_property
    def group_sizes(self) -> tuple[int, ...]:
        """Columns that share a scale, by the quantization groups that have such at 4 bits."""
        groups = (self.quantization or {}).get("config_groups")
        weights = [g.get("weights") or {} for g in groups.values()] if isinstance(groups, dict) else []
        sizes = {w.get("group_size") for w in weights if w.get("strategy") == "group" and w.get("num_bits") == 4}
        return tuple(sorted(size for size in sizes if isinstance(size, int)))

    @cached_property
    def _bit_widths(self) -> tuple[int, ...]:
        """Bits per weight that the quantization groups name."""
        groups = (self.quantization or {}).get("config_groups")
        found = set()
        for group in groups.values() if isinstance(groups, dict) else ():
            weights = group.get("weights") if isinstance(group, dict) else None
            if weights is None:
                continue
            if weights.get("type", "int") != "int":
                raise ModelError(
                    f"{self.path / 'config.json'}: weights of type {weights.get('type')!r} cannot be read here, only "
                    f"integers. Use --backend hf."
                )
            found.add(int(weights.get("num_bits", 8)))
        return tuple(sorted(found))

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def holds(self, name: str) -> bool:
        """Whether the matrix `name` is there in some form."""
        return name in self.entries or f"{name}_packed" in self.entries

    def unread(self) -> list[str]:
        """Names of tensors that were never asked for."""
        return sorted(set(self.entries) - self._read)

    def skip(self, names: Iterable[str]) -> None:
        """Count `names` as read: they are known and not needed."""
        self._read.update(names)

    def entry(self, name: str) -> Entry:
        """Where `name` lies. Raises ModelError where it is missing."""
        try:
            return self.entries[name]
        except KeyError:
            raise ModelError(
                f"{self.path}: tensor {name} is missing from the checkpoint. {_AGAIN} If the model is of another "
                f"architecture than its config.json says, use --backend hf."
            ) from None

    def raw(self, name: str) -> Raw:
        """The stored numbers of `name`; BF16 as its bits, uint16. Reads from the file when used."""
        entry = self.entry(name)
        self._read.add(name)
        data = self._maps.get(entry.file)
        if data is None:
            data = np.memmap(entry.file, dtype=np.uint8, mode="r")
            self._maps[entry.file] = data
        values = data[entry.start : entry.stop].view(_DTYPES[entry.dtype]).reshape(entry.shape)
        # Headers need not end on a multiple of the number's size.
        return values if values.flags.aligned else values.copy()

    def floats(self, name: str, shape: tuple[int, ...] | None = None) -> F32:
        """`name` as finite float32. Raises ModelError for another shape, whole numbers, NaN or infinity."""
        entry = self._shaped(name, shape)
        if entry.dtype not in _FLOATS:
            raise ModelError(f"{entry.file}: tensor {name} has dtype {entry.dtype}, expected floats. Use --backend hf.")
        return self._finite(entry, name, _to_float32(self.raw(name), entry.dtype))

    def halves(self, name: str, shape: tuple[int, int]) -> npt.NDArray[np.uint16]:
        """The bits of a checked F16 or BF16 tensor."""
        entry = self._shaped(name, shape)
        assert entry.dtype in ("F16", "BF16")
        self._finite(entry, name, _to_float32(self.raw(name), entry.dtype))
        return np.ascontiguousarray(self.raw(name)).view(np.uint16)

    def linear(self, name: str, shape: tuple[int, int]) -> Linear:
        """The matrix `name` (ending in ".weight") in whatever form it is stored."""
        if f"{name}_packed" in self.entries:
            return self._packed(name, shape)
        entry = self._shaped(name, shape)
        if entry.dtype in _FLOATS:
            return Linear(floats=self.floats(name, shape))
        if entry.dtype != "I8" or f"{name}_scale" not in self.entries:
            raise ModelError(
                f"{entry.file}: tensor {name} has dtype {entry.dtype} and "
                f"{'no ' if f'{name}_scale' not in self.entries else 'a '}scale; int8 with {name}_scale can be read. "
                f"Use --backend hf."
            )
        self._symmetric(name)
        return self._scaled(name, np.ascontiguousarray(self.raw(name)).view(np.int8))

    def _packed(self, name: str, shape: tuple[int, int]) -> Linear:
        packed_name = f"{name}_packed"
        entry = self.entry(packed_name)
        self._symmetric(name)
        if f"{name}_shape" in self.entries:
            stored = tuple(int(n) for n in np.ravel(self.raw(f"{name}_shape")))
            if stored != shape:
                raise ModelError(
                    f"{entry.file}: tensor {name} has shape {list(stored)}, config.json asks for {list(shape)}."
                )
        rows, columns = shape
        words = entry.shape[-1] if len(entry.shape) == 2 and entry.shape[0] == rows and entry.dtype == "I32" else -1
        fitting = [b for b in self._bit_widths or (4, 8) if 2 <= b <= 8 and math.ceil(columns * b / 32) == words]
        if len(fitting) != 1:
            raise ModelError(
                f"{entry.file}: tensor {packed_name} ({entry.dtype} {list(entry.shape)}) does not hold a "
                f"{rows} x {columns} matrix at {' or '.join(map(str, self._bit_widths or (4, 8)))} bits. "
                f"Use --backend hf."
            )
        return self._scaled(name, unpack(self.raw(packed_name).astype(np.int32), columns, fitting[0]))

    def _scaled(self, name: str, ints: I8) -> Linear:
        scale_name = f"{name}_scale"
        scales = self.floats(scale_name)
        rows, columns = ints.shape
        if scales.size == 1:
            return Linear(ints=ints, scales=np.full(rows, scales.ravel()[0], np.float32))
        if scales.size == rows and scales.shape[0] == rows:
            return Linear(ints=ints, scales=scales.reshape(rows))
        if scales.ndim != 2 or scales.shape[0] != rows or columns % scales.shape[1]:
            raise ModelError(
                f"{self.entry(scale_name).file}: tensor {scale_name} has shape {list(scales.shape)}, which is neither "
                f"one scale per row nor per group of a {rows} x {columns} matrix. Use --backend hf."
            )
        return Linear(ints=ints, scales=scales)

    def _symmetric(self, name: str) -> None:
        """Refuse forms whose whole numbers mean something else."""
        if f"{name}_g_idx" in self.entries:
            raise ModelError(
                f"{self.path}: {name} is stored in activation order (g_idx), which cannot be read here. "
                f"Use --backend hf."
            )
        point = f"{name}_zero_point"
        if point in self.entries and np.any(self.raw(point)):
            raise ModelError(
                f"{self.path}: {name} is quantised with zero points, which cannot be read here. Use --backend hf."
            )

    def _shaped(self, name: str, shape: tuple[int, ...] | None) -> Entry:
        entry = self.entry(name)
        if shape is not None and entry.shape != shape:
            raise ModelError(
                f"{entry.file}: tensor {name} has shape {list(entry.shape)}, config.json asks for {list(shape)}. "
                f"The two files do not belong together; fetch the model again."
            )
        return entry

    def _finite(self, entry: Entry, name: str, values: F32) -> F32:
        # The extremes carry NaN and infinity along and cost no mask of the whole tensor.
        if values.size and not (np.isfinite(values.min()) and np.isfinite(values.max())):
            raise ModelError(f"{entry.file}: tensor {name} holds NaN or infinity. {_AGAIN}")
        return values


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the checkpoint. Raises ModelError."""
    try:
        record = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelError(f"model: {path} is missing. A model folder holds config.json and *.safetensors.") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error}). {_AGAIN}") from None
    if not isinstance(record, dict):
        raise ModelError(f"{path}: holds {type(record).__name__}, expected a JSON object. {_AGAIN}")
    return record


def unpack(words: npt.NDArray[np.int32], columns: int, bits: int) -> I8:
    """Whole numbers [N, columns] from int32 words [N, ceil(columns * bits / 32)]: a little-endian bit stream per row,
    each number shifted up by 2^(bits - 1).

    >>> unpack(np.array([[0x7A98]], np.int32), 4, 4).tolist()
    [[0, 1, 2, -1]]
    """
    stream = np.ascontiguousarray(words, dtype="<i4").view(np.uint8)
    half = 1 << (bits - 1)
    if bits == 8:
        values = stream[:, :columns]
    elif bits == 4:
        values = np.stack((stream & 15, stream >> 4), axis=-1).reshape(len(stream), -1)[:, :columns]
    else:
        single = np.unpackbits(stream, axis=1, bitorder="little")[:, : columns * bits]
        weights = (1 << np.arange(bits)).astype(np.uint8)
        values = (single.reshape(len(stream), columns, bits) * weights).sum(-1, dtype=np.uint8)
    return (values.astype(np.int16) - half).astype(np.int8)


def _to_float32(values: Raw, dtype: str) -> F32:
    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(values, dtype=np.float32)


def _entries(path: Path) -> dict[str, Entry]:
    """Every tensor of the folder by name."""
    index = path / INDEX
    if index.exists():
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict):
            raise ModelError(f"{index}: has no weight_map. {_AGAIN}")
        files = sorted(set(map(str, places.values())))
        for name in files:
            if Path(name).name != name:
                raise ModelError(f"{index}: names a file outside the folder: {name}. {_AGAIN}")
            if not (path / name).exists():
                raise ModelError(f"{path / name}: this shard of the model is missing. Fetch it again.")
    else:
        places = None
        files = sorted(p.name for p in path.glob("*.safetensors"))
    if not files:
        old = sorted(p.name for p in path.glob("*.bin"))
        also = f" It holds {old[0]}: convert it with transformers (save_pretrained) first." if old else ""
        raise ModelError(f"{path}: holds no *.safetensors file.{also}")
    entries: dict[str, Entry] = {}
    for name in files:
        for tensor, entry in _header(path / name).items():
            if tensor in entries and places is None:
                raise ModelError(
                    f"{path / name}: tensor {tensor} is also in {entries[tensor].file.name}, and there is no {INDEX}."
                )
            entries[tensor] = entry
    for tensor, file in (places or {}).items():
        if tensor not in entries or entries[tensor].file.name != file:
            raise ModelError(f"{path / str(file)}: tensor {tensor} is named by {INDEX} but not in the file. {_AGAIN}")
    return entries


def _header(file: Path) -> dict[str, Entry]:
    """Entries of one safetensors file: 8 bytes of length, a JSON header, the data."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise ModelError(f"{file}: truncated: its header claims {length} bytes, the file has {size}. {_AGAIN}")
            record = json.loads(stream.read(length))
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror or error}).") from None
    except ValueError:
        raise ModelError(f"{file}: its header is not valid JSON. {_AGAIN}") from None
    if not isinstance(record, dict):
        raise ModelError(f"{file}: its header is not a JSON object. {_AGAIN}")
    entries = {}
    for name, item in record.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape = item["dtype"], tuple(int(n) for n in item["shape"])
            start, stop = (8 + length + int(n) for n in item["data_offsets"])
        except (KeyError, TypeError, ValueError):
            raise ModelError(f"{file}: tensor {name} has an unreadable header entry. {_AGAIN}") from None
        if dtype not in _DTYPES:
            raise ModelError(f"{file}: tensor {name} has dtype {dtype}, which cannot be read here. Use --backend hf.")
        if stop > size:
            raise ModelError(f"{file}: truncated: tensor {name} ends at byte {stop}, the file has {size}. {_AGAIN}")
        if (
            min(shape, default=0) < 0
            or start < 8 + length
            or stop - start != math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
        ):
            raise ModelError(
                f"{file}: tensor {name} spans {stop - start} bytes, which is not {dtype} {list(shape)}. {_AGAIN}"
            )
        entries[name] = Entry(file, dtype, shape, start, stop)
    return entries
