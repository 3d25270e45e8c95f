"""Which files a model came from: what is trained on a model names it by this, whatever backend runs it."""

import hashlib
from functools import lru_cache
from pathlib import Path


def files_digest(folder: Path) -> str:
    """SHA-256 of a model folder's config and weight files, by name and content; read once per state of the files."""
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    about = [(file, file.stat()) for file in files]
    return _digest(tuple((str(file), state.st_size, state.st_mtime_ns) for file, state in about))


@lru_cache(maxsize=64)
def _digest(states: tuple[tuple[str, int, int], ...]) -> str:
    whole = hashlib.sha256()
    for name, size, _ in states:
        file = Path(name)
        whole.update(f"{file.name}\n{size}\n".encode())
        with file.open("rb") as data:
            whole.update(hashlib.file_digest(data, "sha256").digest())
    return whole.hexdigest()
