"""Writing files so that a good one is never half replaced: a temporary neighbour, flushed, then renamed over it."""

import errno
import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import OutputError


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Turn every OSError of the block into an OutputError that names `path` and the remedy."""
    try:
        yield
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise OutputError(_reason(path, error)) from None


@contextmanager
def replacing(path: Path) -> Generator[BinaryIO]:
    """A new file that takes the place of `path` when the block ends well, and vanishes when it does not.

    Makes the folders above it. Raises OutputError, leaving what was there intact.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes files private; give the result the mode an ordinary open() would have.
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and the folders above it. Raises OutputError, leaving what was there intact."""
    with replacing(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text; lone surrogates are replaced."""
    write_bytes(path, text.encode("utf-8", "replace"))


def append_line(path: Path, line: str) -> None:
    """Add one line to a journal and flush it to disk; a failed write is taken back, so no line is ever torn.

    Raises OutputError.
    """
    data = line.encode("utf-8", "replace") + b"\n"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", buffering=0) as file:
            start = file.seek(0, os.SEEK_END)
            try:
                while data:
                    data = data[file.write(data) :]
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(start)
                raise


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _reason(path: Path, error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return f"there is no space left to write {path}. Free some, or name another place; what was there is unchanged."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{path} cannot be written: permission denied. Name a place you may write to."
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"{path} cannot be written: a file stands where a folder is needed. Name another place."
    if error.errno == errno.EISDIR:
        return f"{path} is a folder. Name a file inside it."
    return f"{path} cannot be written: {error.strerror or error}. Name another place."
