"""Records to plain JSON and back: one envelope with a version, no field lost, none guessed.

A document is `{"steno": 1, "record": "Run", "data": {...}}`. Numbers that JSON does not know are the strings "nan",
"inf" and "-inf". Integer keys are strings. `derived` properties are not stored: they are computed again.
"""

import json
import math
import types
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import TypeVar, Union, cast, get_args, get_origin, get_type_hints

from steno.core.errors import DataError, nearest

VERSION = 1

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]
R = TypeVar("R")

_UNREAL = ("nan", "inf", "-inf")


def to_plain(value: object) -> Plain:
    """A record as dicts, lists, numbers and strings."""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if is_dataclass(value):
        return {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(k): to_plain(v) for k, v in cast(dict[object, object], value).items()}
    if isinstance(value, tuple | list):
        return [to_plain(v) for v in cast(tuple[object, ...], value)]
    if hasattr(value, "item"):
        # numpy scalars are at home in figures.
        return to_plain(value.item())  # type: ignore[union-attr]
    raise TypeError(f"a record holds plain data only, got {type(value).__name__}")


def to_json(record: object, indent: int | None = 1) -> str:
    """A record as a document."""
    data = {"steno": VERSION, "record": type(record).__name__, "data": to_plain(record)}
    return json.dumps(data, indent=indent, ensure_ascii=False, allow_nan=False)


def from_json(text: str, record: type[R], source: str = "the file") -> R:
    """The record of a document. DataError: damage, another version or record, unknown or lost fields."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise DataError(f"{source} is not valid JSON ({error}). It is damaged: write it again.") from None
    if not isinstance(data, dict) or "data" not in data:
        raise DataError(f"{source} holds no steno record.")
    envelope = cast(dict[str, object], data)
    if envelope.get("steno") != VERSION:
        raise DataError(f"{source} has version {envelope.get('steno')!r}, this steno reads {VERSION}. Write it again.")
    if envelope.get("record") != record.__name__:
        raise DataError(f"{source} holds a {envelope.get('record')}, and a {record.__name__} is wanted.")
    return from_plain(envelope["data"], record, source)


def from_plain(data: object, record: type[R], source: str = "the data") -> R:
    """The record of plain data; the inverse of `to_plain`."""
    return cast(R, _read(data, record, f"{source}: {record.__name__}"))


@cache
def _hints(record: type) -> dict[str, object]:
    return get_type_hints(record)


def _read(data: object, kind: object, where: str) -> object:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        if data is None:
            return None
        return _read(data, next(k for k in get_args(kind) if k is not type(None)), where)
    if origin is tuple and isinstance(data, list):
        inner = get_args(kind)[0]
        return tuple(_read(v, inner, f"{where}[{i}]") for i, v in enumerate(cast(list[object], data)))
    if origin is dict and isinstance(data, dict):
        key, inner = get_args(kind)
        items = cast(dict[str, object], data).items()
        return {_read_key(k, key, where): _read(v, inner, f"{where}.{k}") for k, v in items}
    if isinstance(kind, type):
        if is_dataclass(kind) and isinstance(data, dict):
            return _read_record(cast(dict[str, object], data), kind, where)
        if issubclass(kind, Enum):
            try:
                return kind(data)
            except ValueError:
                raise DataError(f"{where} is {data!r}, not one of {', '.join(str(m.value) for m in kind)}") from None
        if kind is float and (type(data) in (int, float) or data in _UNREAL):
            return float(cast(float, data))
        if kind in (int, str, bool) and type(data) is kind:
            return data
    raise DataError(f"{where} is {data!r:.60}, which is not {getattr(kind, '__name__', kind)}")


def _read_key(key: str, kind: object, where: str) -> object:
    if kind is not int:
        return key
    try:
        return int(key)
    except ValueError:
        raise DataError(f"{where} has the key {key!r}, which is no integer") from None


def _read_record(data: dict[str, object], kind: type, where: str) -> object:
    hints = _hints(kind)
    names = {f.name for f in fields(kind)}
    for name in data:
        if name not in names:
            raise DataError(f"{where} has an unknown field '{name}'. {nearest(name, names)}")
    lost = sorted(names - data.keys())
    if lost:
        raise DataError(f"{where} lacks {', '.join(lost)}. It is damaged, or of another version: write it again.")
    return kind(**{name: _read(value, hints[name], f"{where}.{name}") for name, value in data.items()})
