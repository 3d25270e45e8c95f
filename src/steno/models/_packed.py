"""Packed weights on disk, so that the next start maps them instead of reading, rounding and arranging them again.

`STENO_CACHE` names the folder; "off" turns it off; default `$XDG_CACHE_HOME/steno` or `~/.cache/steno`. A file belongs
to one state of a checkpoint's files (path, size, time of change), one number form and one arithmetic; what does not
match, is damaged or was written half is ignored and written anew. Small models are not kept: they load in no time.
"""

import hashlib
import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from steno.core.errors import StenoError

from ._engine import Model as Engine
from .checkpoint import Checkpoint

LAYOUT = 1
"""Version of the order and layouts of `native/model.cpp`."""

SMALL_BYTES = 32 << 20
MOST_BYTES = 32 << 30
"""What the folder may hold in all; the files used longest ago go first."""


def packed_key(checkpoint: Checkpoint, form: str) -> str:
    """Names one state of a checkpoint in one form."""
    files = sorted({entry.file for entry in checkpoint.entries.values()})
    states = [(str(file.resolve()), *_state(file)) for file in files]
    text = json.dumps([LAYOUT, form, checkpoint.config, states], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def packed_file(key: str) -> Path | None:
    """Where the packed weights of `key` lie or would lie; None where there is no cache."""
    named = os.environ.get("STENO_CACHE", "")
    if named == "off":
        return None
    base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "steno"
    return base / "packed" / f"{key[:32]}.weights"


def keep(engine: Engine, file: Path, key: str) -> None:
    """Write the engine's weights to `file`. Where that is impossible, the next start is slow again and nothing else."""
    if engine.weight_bytes() < SMALL_BYTES:
        return
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _make_room(file.parent, engine.weight_bytes())
        engine.save(str(part), key)
        part.replace(file)
    except (OSError, StenoError) as error:
        print(f"steno: the packed weights were not kept for the next start ({error})", file=sys.stderr)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _state(file: Path) -> tuple[int, int]:
    about = file.stat()
    return about.st_size, about.st_mtime_ns


def _make_room(folder: Path, needed: int) -> None:
    files = sorted(((f.stat().st_atime_ns, f.stat().st_size, f) for f in folder.glob("*.weights")), reverse=True)
    held = needed
    for _, size, file in files:
        held += size
        if held > MOST_BYTES:
            file.unlink(missing_ok=True)
