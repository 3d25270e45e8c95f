"""The index of methods: read from the sources without importing them, committed as `index.json`, compared in CI.

A method is a module of a room with a `CARD = Card(...)` and one final knob class. Outside packages join by the entry
point group `steno.knobs` (name = the knob's name, value = module:Class).
"""

import ast
import json
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TypedDict, cast

from .errors import KnobError, MissingExtra, nearest
from .knob import Knob, Value

PACKAGE = Path(__file__).resolve().parents[1]
ROOMS = ("weights", "cache", "reuse", "decode")
INDEX = PACKAGE / "index.json"


class Entry(TypedDict):
    """One method in the index; `fields` maps a field to (annotation, default), both as source text."""

    module: str
    knob: str
    doc: str
    card: dict[str, object]
    fields: dict[str, list[str]]


@cache
def methods() -> dict[str, Entry]:
    """All methods by name, from the committed index and from entry points. Raises KnobError for a name held twice."""
    index = cast(dict[str, Entry], json.loads(INDEX.read_text(encoding="utf-8"))) if INDEX.exists() else scan()
    for point in entry_points(group="steno.knobs"):
        if point.name in index:
            owner = index[point.name]["module"]
            raise KnobError(f"two packages own the name {point.name}: {owner} and {point.value}. Uninstall one.")
        module, _, knob = point.value.partition(":")
        index[point.name] = Entry(module=module, knob=knob, doc="", card={}, fields={})
    return index


def knob_class(name: str) -> type[Knob]:
    """The knob class called `name`. Raises KnobError for an unknown name, with the three nearest."""
    known = methods()
    if name not in known:
        raise KnobError(f"there is no knob '{name}'. {nearest(name, known)} List them with: steno methods")
    entry = known[name]
    try:
        module = import_module(entry["module"])
    except ModuleNotFoundError as error:
        extras = cast(list[str], entry["card"].get("requires", []))
        if error.name and extras and not error.name.startswith("steno"):
            raise MissingExtra(name, error.name, extras[0]) from None
        raise
    return cast(type[Knob], getattr(module, entry["knob"]))


def make_knob(name: str, settings: dict[str, Value]) -> Knob:
    """A knob from its name and plain settings."""
    return knob_class(name).build(settings)


def scan(package: Path = PACKAGE) -> dict[str, Entry]:
    """Read every method file of the rooms, importing none."""
    found: dict[str, Entry] = {}
    for room in ROOMS:
        for path in sorted((package / room).rglob("*.py")):
            if path.name.startswith("_") or path.name == "base.py":
                continue
            entry = read_method(path, package)
            if entry:
                found[entry["module"].removeprefix("steno.")] = entry
    return found


def read_method(path: Path, package: Path = PACKAGE) -> Entry | None:
    """The entry of one file, or None where it holds no card."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    card: dict[str, object] | None = None
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "CARD" for t in node.targets):
            call = node.value
            if isinstance(call, ast.Call):
                card = {k.arg: _literal(k.value, path) for k in call.keywords if k.arg}
    if card is None:
        return None
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and _names_card(node):
            module = "steno." + ".".join(path.relative_to(package).with_suffix("").parts)
            doc = (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")
            return Entry(module=module, knob=node.name, doc=doc, card=card, fields=_fields(node, path.parent, package))
    raise KnobError(f"{path} has a CARD and no knob class that says `card = CARD`")


def dump(index: dict[str, Entry]) -> str:
    """The committed form of the index."""
    return json.dumps(index, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _names_card(node: ast.ClassDef) -> bool:
    for item in node.body:
        target = (
            item.target
            if isinstance(item, ast.AnnAssign)
            else item.targets[0]
            if isinstance(item, ast.Assign)
            else None
        )
        if isinstance(target, ast.Name) and target.id == "card":
            return True
    return False


def _fields(node: ast.ClassDef, folder: Path, package: Path) -> dict[str, list[str]]:
    """Fields of a class behind those of its bases, as a dataclass has them."""
    out: dict[str, list[str]] = {}
    for base in node.bases:
        if isinstance(base, ast.Name) and (found := _base(base.id, folder, package)):
            out |= _fields(found, folder, package)
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.target.id != "card":
            note = ast.unparse(item.annotation)
            if note.startswith("ClassVar"):
                continue
            out[item.target.id] = [note, ast.unparse(item.value) if item.value else ""]
    return out


def _base(name: str, folder: Path, package: Path) -> ast.ClassDef | None:
    """The class `name` of the nearest `base.py` at or above `folder`, or None."""
    path = folder / "base.py"
    if path.exists():
        tree = _tree(path)
        return next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), None)
    return None if folder == package else _base(name, folder.parent, package)


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _literal(node: ast.expr, path: Path) -> object:
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise KnobError(f"{path}: a card holds literals only, got {ast.unparse(node)}") from None
