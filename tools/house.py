"""Checks of the house that no linter knows: the import law, sizes of method files, links of the docs; counts lines.

Exits 1 with one line per breach.
"""

import ast
import re
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "steno"

LAYERS = [
    {"core"},
    {"tokens", "codecs"},
    {"models"},
    {"weights", "cache"},
    {"reuse"},
    {"decode"},
    {"train", "read", "measure"},
    {"tune"},
    {"serve"},
    {"cli"},
]
RANK = {room: rank for rank, layer in enumerate(LAYERS) for room in layer}
METHOD_LINES = 200
METHOD_ROOMS = (
    "weights", "cache", "reuse", "decode/draft", "decode/accept", "decode/constrain", "decode/schedule",
    "decode/score", "decode/shape", "decode/search",
)  # fmt: skip
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


def main() -> int:
    breaches = [*import_law(), *method_sizes(), *dead_links()]
    for line in breaches:
        print(line, file=sys.stderr)
    for room, lines in sorted(line_count().items()):
        print(f"{lines:6} lines  {room}")
    return 1 if breaches else 0


def import_law(source: Path = SOURCE) -> list[str]:
    """Imports that run against the law: to the right, to a neighbour, from one method file to another."""
    out: list[str] = []
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).parts
        room = parts[0]
        for line, target in _imports(path, source):
            words = target.split(".")
            if words[0] != "steno" or len(words) < 2:
                continue
            other = words[1]
            where = f"{path.relative_to(source.parent)}:{line}"
            if room in RANK and other in RANK and other != room and RANK[other] >= RANK[room]:
                out.append(f"{where}: {room} must not import {other} (core <- ... <- cli)")
            if _is_method(path, source) and other == room:
                # `from .b import thing` names steno.room.b.thing: the file is one of the two.
                files = [source.joinpath(*words[1:end]).with_suffix(".py") for end in (len(words), -1)]
                if any(file != path and _is_method(file, source) for file in files):
                    out.append(f"{where}: a method must not import its sibling {target}; share a _name.py file")
    return out


def method_sizes(source: Path = SOURCE) -> list[str]:
    """Method files over the cap."""
    out: list[str] = []
    for room in METHOD_ROOMS:
        for path in sorted((source / room).glob("*.py")):
            lines = len(path.read_text(encoding="utf-8").splitlines())
            if _is_method(path, source) and lines > METHOD_LINES:
                out.append(f"{path.relative_to(source.parent)}: {lines} lines, the cap for a method is {METHOD_LINES}")
    return out


def dead_links(root: Path = ROOT) -> list[str]:
    """Relative links in Markdown files that lead nowhere."""
    out: list[str] = []
    for path in [*root.glob("*.md"), *(root / "docs").rglob("*.md")]:
        for target in LINK.findall(path.read_text(encoding="utf-8")):
            if "://" not in target and not target.startswith("mailto:") and not (path.parent / target).exists():
                out.append(f"{path.relative_to(root)}: link to {target} leads nowhere")
    return out


def line_count(source: Path = SOURCE) -> Counter[str]:
    """Lines of code by room, the engine and the tests beside them."""
    count: Counter[str] = Counter()
    for path in source.rglob("*.py"):
        parts = path.relative_to(source).parts
        count[parts[0] if len(parts) > 1 else "steno"] += len(path.read_text(encoding="utf-8").splitlines())
    for name, pattern in (("native", "*.[chi]*"), ("tests", "*.py"), ("tools", "*.py")):
        for path in (ROOT / name).rglob(pattern):
            if path.is_file():
                count[f"({name})"] += len(path.read_text(encoding="utf-8").splitlines())
    return count


def _is_method(path: Path, source: Path) -> bool:
    if not path.exists() or path.name.startswith("_") or path.name in ("base.py", "loop.py"):
        return False
    return str(path.parent.relative_to(source)) in METHOD_ROOMS


def _imports(path: Path, source: Path) -> list[tuple[int, str]]:
    """(line, absolute dotted target) of every import, `from a import b` as a.b and a."""
    package = ["steno", *path.relative_to(source).parts[:-1]]
    out: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            out += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            out += [(node.lineno, f"{stem}.{alias.name}") for alias in node.names]
    return out


if __name__ == "__main__":
    sys.exit(main())
