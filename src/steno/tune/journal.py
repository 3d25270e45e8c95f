"""The journal of a search: every measurement, one JSON line each, on disk before the next begins.

The search is a pure function of its inputs and of what it measured. So resuming is replaying: a measurement that the
journal holds is taken from it, and the search comes to the point where it was stopped.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

from steno.core.errors import DataError, OutputError
from steno.core.files import append_line, write_text
from steno.measure import Bytes, Fidelity, Span, from_plain, to_plain

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Out:
    """What one prompt gave in a pass."""

    tokens: tuple[int, ...]
    finish: str = ""
    passes: int = 0
    drafted: int = 0
    accepted: int = 0
    histogram: dict[int, int] = field(default_factory=dict[int, int])
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lap:
    """One timed pass of one arm over the prompts of one unit. `error` is set, and the rest empty, where it failed."""

    prefill_s: float = 0.0
    decode_s: float = 0.0
    decoded: int = 0
    outs: tuple[Out, ...] = ()
    error: str = ""

    @property
    def seconds(self) -> float:
        return self.prefill_s + self.decode_s

    @property
    def tokens(self) -> int:
        return sum(len(out.tokens) for out in self.outs)

    @property
    def per_s(self) -> float:
        """Tokens per second, prefill included."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


Record = Lap | Fidelity | Bytes
KINDS: dict[str, type[Record]] = {"Lap": Lap, "Fidelity": Fidelity, "Bytes": Bytes}
Kind = TypeVar("Kind", Lap, Fidelity, Bytes)


class Journal:
    """Measurements by key, each with the seconds it cost. `path` None keeps them in memory only."""

    def __init__(self, path: Path | None, found: dict[str, tuple[Record, float]]) -> None:
        self.path = path
        self._found = found

    @staticmethod
    def begin(path: Path | None, identity: dict[str, str]) -> "Journal":
        """A fresh journal. `identity` is what a resumed search must share. Raises OutputError."""
        if path is not None:
            write_text(path, json.dumps({"steno": VERSION, "journal": identity}) + "\n")
        return Journal(path, {})

    @staticmethod
    def resume(path: Path, identity: dict[str, str]) -> "Journal":
        """The journal at `path`. Raises OutputError where there is none, or where it belongs to another search."""
        try:
            text = path.read_text(encoding="utf-8")
        except OSError:
            raise OutputError(f"there is no search to resume in {path.parent}. Start one without --resume.") from None
        head, *lines = text.split("\n")
        try:
            first = json.loads(head)
            owner = cast(dict[str, str], first["journal"])
            version = first["steno"]
        except (ValueError, KeyError, TypeError):
            raise OutputError(f"{path} is damaged at its first line. Start again with --force.") from None
        if version != VERSION:
            raise OutputError(f"{path} has version {version!r}, this steno reads {VERSION}. Start again with --force.")
        for key, value in identity.items():
            if owner.get(key) != value:
                raise OutputError(
                    f"{path.parent} holds a search with another {key} ({_short(owner.get(key))}, now {_short(value)}). "
                    "Repeat that command with --resume, or start again with --force."
                )
        found: dict[str, tuple[Record, float]] = {}
        # A line is whole, or it is the last one, cut by a power failure: what follows a bad line is not trusted.
        for line in lines:
            try:
                entry = json.loads(line)
                record = from_plain(entry["data"], KINDS[entry["kind"]], str(path))
                found[entry["key"]] = (record, float(entry["spent"]))
            except (ValueError, KeyError, TypeError, DataError):
                break
        write_text(path, "\n".join([head, *(_line(k, *v) for k, v in found.items())]) + "\n")
        return Journal(path, found)

    def get(self, key: str, kind: type[Kind]) -> tuple[Kind, float] | None:
        """A measurement and the seconds it cost, or None where it is still to be made."""
        record, spent = self._found.get(key, (None, 0.0))
        return (record, spent) if isinstance(record, kind) else None

    def put(self, key: str, record: Record, spent: float) -> None:
        """Keep a measurement. Raises OutputError where the disk does not take it."""
        self._found[key] = (record, spent)
        if self.path is not None:
            append_line(self.path, _line(key, record, spent))

    @property
    def count(self) -> int:
        """Measurements held."""
        return len(self._found)


def _line(key: str, record: Record, spent: float) -> str:
    data = {"key": key, "kind": type(record).__name__, "spent": spent, "data": to_plain(record)}
    return json.dumps(data, ensure_ascii=False)


def _short(value: str | None) -> str:
    text = "none" if value is None else value
    return text if len(text) <= 40 else text[:37] + "..."
