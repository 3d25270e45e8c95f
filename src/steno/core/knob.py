"""Knob: one method's settings as a frozen, validated record. Its name is its path: `cache/snap.py` is `cache.snap`.

A knob holds no tensors and never changes. Each field's annotation carries type, closed range and unit:

    @dataclass(frozen=True, kw_only=True)
    class Window(CacheKnob):
        sinks: Annotated[int, Span(0, 1024, "tokens")] = 4
        mode: Annotated[str, OneOf("drop", "merge")] = "drop"
"""

import types
from dataclasses import dataclass, fields
from typing import Annotated, ClassVar, Union, cast, get_args, get_origin, get_type_hints

from .card import Card
from .errors import KnobError, nearest

Scalar = bool | int | float | str | None
Value = Scalar | tuple["Value", ...] | dict[str, "Value"]


@dataclass(frozen=True)
class Span:
    """A closed range with a unit."""

    low: float
    high: float
    unit: str = ""

    def allows(self, value: object) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"between {self.low:g} and {self.high:g}{' ' + self.unit if self.unit else ''}"


@dataclass(frozen=True, init=False)
class OneOf:
    """A closed set of values."""

    values: tuple[Scalar, ...]

    def __init__(self, *values: Scalar) -> None:
        object.__setattr__(self, "values", values)

    def allows(self, value: object) -> bool:
        return any(value == v and type(value) is type(v) for v in self.values)

    def __str__(self) -> str:
        return "one of " + ", ".join(repr(v) if isinstance(v, str) else str(v) for v in self.values)


Rule = Span | OneOf


@dataclass(frozen=True, kw_only=True)
class Knob:
    """Base of every knob. Rooms derive one abstract knob with the room's verb; methods derive final ones.

    points  settings that the method's evidence covers, one comparison each; none where nothing here can show it
    """

    card: ClassVar[Card]
    points: ClassVar[tuple[dict[str, Value], ...]] = ({},)

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for field in fields(self):
            value = _coerce(getattr(self, field.name), hints[field.name])
            _check(self.name, field.name, value, hints[field.name])
            object.__setattr__(self, field.name, value)

    @property
    def name(self) -> str:
        """The knob's name, from its module path: `steno.cache.affine` -> `cache.affine`."""
        return knob_name(type(self))

    @property
    def complete(self) -> bool:
        """Whether it can run as it is: False where it still has to be given a file, which only the user can name."""
        return True

    def settings(self) -> dict[str, Value]:
        """Field values as plain data; a nested knob becomes a dict with its `name`."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    def parts(self) -> tuple["Knob", ...]:
        """The knobs in this knob's fields, and in theirs: what they promise and need counts for the whole."""
        held = [getattr(self, field.name) for field in fields(self)]
        nested = [knob for value in held for knob in _knobs(value)]
        return tuple(part for knob in nested for part in (knob, *knob.parts()))

    @classmethod
    def build(cls, settings: dict[str, Value]) -> "Knob":
        """The knob from plain data; a dict with a `name` becomes a knob of its own.

        Raises KnobError for an unknown key, naming the three nearest.
        """
        known = {f.name for f in fields(cls)}
        for key in settings:
            if key not in known:
                raise KnobError(f"{knob_name(cls)} has no field '{key}'. {nearest(key, known)}")
        values = {key: _rebuilt(value, knob_name(cls), key) for key, value in settings.items()}
        return cls(**values)  # type: ignore[arg-type]


def knob_name(cls: type[Knob]) -> str:
    """`steno.decode.draft.suffix` -> `decode.draft.suffix`; modules elsewhere keep their full path."""
    return cls.__module__.removeprefix("steno.")


def _knobs(value: object) -> tuple[Knob, ...]:
    items = cast(tuple[object, ...], value) if isinstance(value, tuple) else (value,)
    return tuple(item for item in items if isinstance(item, Knob))


def _rebuilt(value: Value, owner: str, field: str) -> object:
    """Plain data with its dicts made knobs again, which `core.index` finds by name."""
    if isinstance(value, list | tuple):
        return tuple([_rebuilt(item, owner, field) for item in cast(tuple[Value, ...], value)])
    if not isinstance(value, dict):
        return value
    from .index import make_knob

    data = dict(value)
    name = data.pop("name", None)
    if not isinstance(name, str):
        raise KnobError(
            f"{owner}: {field} takes a knob with its name, got {value!r}. "
            f'Write for example: {{ name = "decode.draft.suffix" }}'
        )
    return make_knob(name, data)


def _plain(value: object) -> Value:
    if isinstance(value, Knob):
        return {"name": value.name, **value.settings()}
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in cast(tuple[object, ...], value))
    return cast(Value, value)


def _split(hint: object) -> tuple[object, tuple[Rule, ...]]:
    """An annotation as (bare type, rules)."""
    if get_origin(hint) is Annotated:
        bare, *extras = get_args(hint)
        return bare, tuple(e for e in extras if isinstance(e, Span | OneOf))
    return hint, ()


def _options(bare: object) -> tuple[object, ...]:
    return get_args(bare) if get_origin(bare) in (Union, types.UnionType) else (bare,)


def _coerce(value: object, hint: object) -> object:
    """TOML and JSON know lists and write 1 for 1.0: make the value what the field says, nothing more."""
    bare, _ = _split(hint)
    options = _options(bare)
    if isinstance(value, list):
        value = tuple(cast(list[object], value))
    if float in options and type(value) is int:
        return float(value)
    return value


def _check(name: str, field: str, value: object, hint: object) -> None:
    bare, rules = _split(hint)
    options = _options(bare)
    if value is None and type(None) in options:
        return
    if not any(_is(value, option) for option in options):
        wanted = " or ".join(getattr(o, "__name__", str(o)) for o in options)
        raise KnobError(f"{name}: {field} must be {wanted}, got {value!r}. Set it with --set {name}.{field}=VALUE")
    items: tuple[object, ...] = cast(tuple[object, ...], value) if isinstance(value, tuple) else (value,)
    for rule in rules:
        for item in items:
            if not rule.allows(item):
                raise KnobError(f"{name}: {field} must be {rule}, got {item!r}. Set it with --set {name}.{field}=VALUE")


def _is(value: object, kind: object) -> bool:
    origin = get_origin(kind)
    if origin is tuple:
        inner = get_args(kind)[0]
        return isinstance(value, tuple) and all(_is(v, inner) for v in cast(tuple[object, ...], value))
    if get_origin(kind) is Annotated:
        return _is(value, get_args(kind)[0])
    if kind is bool:
        return isinstance(value, bool)
    if kind is int or kind is float:
        return type(value) is kind
    return isinstance(kind, type) and isinstance(value, kind)
