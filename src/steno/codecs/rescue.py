"""Files out of a damaged .sz file: whole ones under their names, the others apart, with zeros where bytes are lost."""

from dataclasses import dataclass, field
from pathlib import Path

from steno.core.errors import OutputError
from steno.core.files import write_bytes, writing

from .base import LimitExceeded
from .container import Entry
from .files import inside, parts
from .kinds import Kinds
from .reader import Lost, salvage

HOLE = 1 << 30
"""Most bytes that are filled with zeros in one place: a record that lies must not fill the memory."""


@dataclass(slots=True)
class Rescued:
    """whole, damaged: files written; lost: ranges of raw bytes; raw: bytes restored"""

    whole: list[Path] = field(default_factory=list)
    damaged: list[Path] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)
    raw: int = 0

    def record(self) -> dict[str, object]:
        return {
            "whole": [str(p) for p in self.whole],
            "damaged": [str(p) for p in self.damaged],
            "lost": [{"start": x.start, "stop": x.stop, "why": x.why} for x in self.lost],
            "raw_bytes": self.raw,
        }


@dataclass(slots=True)
class _File:
    entry: Entry
    content: bytearray = field(default_factory=bytearray)
    whole: bool = True


def rescue(data: bytes, kinds: Kinds, folder: Path, fallback: str, *, force: bool) -> Rescued:
    """Write what `data` still holds. A file that lost bytes is written as NAME.damaged. Raises OutputError."""
    out = Rescued()
    files: dict[str, _File] = {}
    last: _File | None = None
    for item in salvage(data, kinds):
        if isinstance(item, Lost):
            out.lost.append(item)
            # Nobody knows which files ended or began in what is lost: the one that was open may be among them.
            if last is not None:
                last.whole = False
                last = None
            continue
        head, raw = item
        out.raw += len(raw)
        for piece, part in parts(head, raw):
            found = files.setdefault(piece.name or fallback, _File(piece.entry))
            if piece.offset > len(found.content):
                found.whole = False
                if piece.offset - len(found.content) > HOLE:
                    raise LimitExceeded(f"{piece.name} lacks more than {HOLE} bytes. Restore its parts with --range.")
                found.content += bytes(piece.offset - len(found.content))
            found.content += part
            last = found
    for name, found in files.items():
        path = inside(folder, name)
        if found.entry is Entry.FOLDER:
            with writing(path):
                path.mkdir(parents=True, exist_ok=True)
            continue
        if not found.whole:
            path = path.with_name(path.name + ".damaged")
        if path.exists() and not force:
            raise OutputError(f"{path} exists already. Use --force to overwrite it, or --out for another folder.")
        write_bytes(path, bytes(found.content))
        (out.whole if found.whole else out.damaged).append(path)
    return out
