"""Plan: an ordered set of knobs, as TOML, with what they keep together and whether they fit.

steno = 1
[[knob]]
name = "decode.draft.suffix"
max_depth = 64
"""

import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

from .card import Keeps, weakest
from .errors import PlanError, nearest
from .index import make_knob
from .knob import Knob, Value

VERSION = 1
ORDER = ("tokens", "codecs", "models", "weights", "cache", "reuse", "decode")


@dataclass(frozen=True)
class Plan:
    """Knobs in canonical order: room by room, and within a room in the order given."""

    knobs: tuple[Knob, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "knobs", tuple(sorted(self.knobs, key=lambda k: _place(k.name))))

    @property
    def keeps(self) -> Keeps:
        """The weakest promise among the knobs and those in them, task knobs aside (the baseline has them too)."""
        return weakest(Keeps(k.card.keeps) for k in self.whole() if not k.card.task)

    def whole(self) -> tuple[Knob, ...]:
        """The knobs, each followed by those in its fields."""
        return tuple(part for knob in self.knobs for part in (knob, *knob.parts()))

    def task(self) -> "Plan":
        """The baseline of this plan: only the knobs that say what is asked for."""
        return Plan(tuple(k for k in self.knobs if k.card.task))

    def find(self, prefix: str) -> tuple[Knob, ...]:
        """Knobs named `prefix` or below it."""
        return tuple(k for k in self.knobs if _below(k.name, prefix))

    def one(self, prefix: str) -> Knob | None:
        """The single knob at or below `prefix`, or None. Raises PlanError for several."""
        found = self.find(prefix)
        if len(found) > 1:
            raise PlanError(f"the plan has {len(found)} knobs under {prefix}: {_names(found)}. Keep one of them.")
        return found[0] if found else None

    def with_knobs(self, *knobs: Knob) -> "Plan":
        """This plan and `knobs`; a knob of the same name is replaced."""
        names = {k.name for k in knobs}
        return Plan((*(k for k in self.knobs if k.name not in names), *knobs))

    def set(self, key: str, text: str) -> "Plan":
        """The plan after `--set cache.affine.key_bits=4`; the knob is added with its defaults where it is absent."""
        name, _, field = key.rpartition(".")
        value = parse_value(text)
        for knob in self.knobs:
            if knob.name == name:
                settings: dict[str, Value] = {**knob.settings(), field: value}
                return self.with_knobs(make_knob(name, settings))
        return self.with_knobs(make_knob(name, {field: value}))

    def clashes(self, backend: str = "") -> list[str]:
        """Every reason why the knobs do not fit together, or do not run on `backend`; empty where they fit."""
        out: list[str] = []
        names = [k.name for k in self.knobs]
        out += [f"{name} stands twice. Keep one." for name in sorted({n for n in names if names.count(n) > 1})]
        pairs: set[frozenset[str]] = set()
        for knob in self.knobs:
            card = knob.card
            others = [n for n in names if n != knob.name]
            for other in others:
                pair = frozenset((knob.name, other))
                if pair not in pairs and any(_below(other, prefix) for prefix in card.breaks):
                    pairs.add(pair)
                    out.append(f"{knob.name} cannot stand beside {other}. Remove one of the two.")
            if card.needs and not any(_below(other, prefix) for prefix in card.needs for other in others):
                out.append(f"{knob.name} needs one of {', '.join(card.needs)}. Add one.")
        for knob in self.whole():
            if backend and backend not in knob.card.backends:
                runs = ", ".join(knob.card.backends) or "none"
                out.append(f"{knob.name} does not run on the {backend} backend (it runs on: {runs}).")
        return out

    def check(self, backend: str = "", keep: Keeps | None = None) -> None:
        """Raise PlanError with every clash, or where the plan keeps less than `keep`."""
        problems = self.clashes(backend)
        if keep is not None and not self.keeps.covers(keep):
            weak = [k for k in self.whole() if not k.card.task and not Keeps(k.card.keeps).covers(keep)]
            problems += [f"{k.name} keeps {Keeps(k.card.keeps).value}, and {keep.value} is asked for." for k in weak]
        if problems:
            raise PlanError("the plan does not hold together:\n  " + "\n  ".join(problems))

    def to_toml(self) -> str:
        """The plan as text that `from_toml` reads back to an equal plan."""
        lines = [f"steno = {VERSION}"]
        for knob in self.knobs:
            lines += ["", "[[knob]]", f"name = {json.dumps(knob.name)}"]
            lines += [f"{k} = {_toml(v)}" for k, v in knob.settings().items() if v is not None]
        return "\n".join(lines) + "\n"

    @staticmethod
    def from_toml(text: str, source: str = "plan") -> "Plan":
        """Read a plan. Raises PlanError for what is not TOML, for another version and for unknown keys and knobs."""
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise PlanError(f"{source} is not valid TOML: {error}") from None
        version = data.pop("steno", None)
        if version != VERSION:
            came = "no version" if version is None else f"version {version!r}"
            raise PlanError(
                f"{source} has {came}; this steno reads version {VERSION}. Its first line must be: steno = 1"
            )
        entries = data.pop("knob", [])
        if data:
            key = next(iter(data))
            raise PlanError(f"{source} has an unknown key '{key}'. {nearest(key, ('steno', 'knob'))}")
        if not isinstance(entries, list):
            raise PlanError(f"{source}: knobs are written as [[knob]] tables, each with a name")
        knobs: list[Knob] = []
        for entry in cast(list[object], entries):
            if not isinstance(entry, dict) or not isinstance(cast(dict[str, object], entry).get("name"), str):
                raise PlanError(f'{source}: every [[knob]] needs a name, such as name = "decode.draft.suffix"')
            settings = dict(cast(dict[str, Value], entry))
            knobs.append(make_knob(str(settings.pop("name")), settings))
        return Plan(tuple(knobs))


def parse_value(text: str) -> Value:
    """A value typed on a command line: TOML where it parses, else the bare text.

    >>> parse_value("4"), parse_value("true"), parse_value("drop")
    (4, True, 'drop')
    """
    try:
        return cast(Value, tomllib.loads(f"v = {text}")["v"])
    except tomllib.TOMLDecodeError:
        return text


def _place(name: str) -> int:
    room = name.partition(".")[0]
    return ORDER.index(room) if room in ORDER else len(ORDER)


def _below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _names(knobs: Iterable[Knob]) -> str:
    return ", ".join(k.name for k in knobs)


def _toml(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items() if v is not None) + " }"
    raise PlanError(f"a plan cannot hold {value!r}")
