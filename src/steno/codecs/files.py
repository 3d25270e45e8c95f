"""Folders and files into a writer, and out of a reader; nothing half-written, nothing outside the folder asked for."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from steno.core.errors import OutputError, UserError
from steno.core.files import replacing, writing

from .base import Corrupt
from .container import ChunkHead, Entry, Piece


def collect(root: Path) -> tuple[list[tuple[str, Entry, Path]], list[str]]:
    """(what to store, what is left out and why) below a file or folder. Like files stand together.

    Names are relative to the folder that holds `root`. Raises UserError where there is nothing to read.
    """
    if not root.exists():
        raise UserError(f"there is no file or folder {root}. Check the name.")
    if root.is_file():
        return [(root.name, _entry(root), root)], []
    if not root.is_dir():
        raise UserError(f"{root} is neither a file nor a folder. To compress a stream, use - and redirect it.")
    base = root.resolve()
    found: list[tuple[str, Entry, Path]] = [(base.name, Entry.FOLDER, root)]
    left: list[str] = []
    for folder, folders, files in os.walk(base, onerror=_unreadable):
        folders.sort()
        for name in sorted([*folders, *files]):
            path = Path(folder, name)
            stored = str(PurePosixPath(base.name, *path.relative_to(base).parts))
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                left.append(f"{stored}: {'a symbolic link' if path.is_symlink() else 'no file'}")
            else:
                found.append((stored, Entry.FOLDER if path.is_dir() else _entry(path), path))
    return sorted(found, key=lambda f: (f[1] is not Entry.FOLDER, PurePosixPath(f[0]).suffix, f[0])), left


class Unpacker:
    """Takes decoded chunks and makes files below `folder`. A file appears when its last byte was checked.

    fallback  name of an entry that has none
    """

    def __init__(self, folder: Path, fallback: str, *, force: bool) -> None:
        self._folder, self._fallback, self._force = folder, fallback, force
        self._open: ExitStack | None = None
        self._file: BinaryIO | None = None
        self._entry = Entry.FILE
        self._path = folder
        self.files: list[Path] = []

    def __enter__(self) -> "Unpacker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._open is not None:
            stack, self._open = self._open, None
            if kind is None:
                self._settle(stack)
            else:
                stack.__exit__(kind, *rest)  # type: ignore[arg-type]

    def feed(self, head: ChunkHead, raw: bytes) -> None:
        """Write a chunk's bytes to the files they belong to. Raises OutputError, Corrupt."""
        for piece, part in parts(head, raw):
            if piece.offset == 0:
                self.__exit__(None)
                self._begin(piece)
            elif self._file is None:
                raise Corrupt(f"{piece.name} goes on where it never began")
            if self._file is not None:
                with writing(self._path):
                    self._file.write(part)

    def _begin(self, piece: Piece) -> None:
        self._path = path = inside(self._folder, piece.name or self._fallback)
        self._entry = piece.entry
        if piece.entry is Entry.FOLDER:
            with writing(path):
                path.mkdir(parents=True, exist_ok=True)
            self._file = None
            return
        if path.exists() and not self._force:
            raise OutputError(f"{path} exists already. Use --force to overwrite it, or --out for another folder.")
        self._open = ExitStack()
        self._file = self._open.enter_context(replacing(path))

    def _settle(self, stack: ExitStack) -> None:
        stack.close()
        if self._entry is Entry.PROGRAM:
            with writing(self._path):
                self._path.chmod(self._path.stat().st_mode | 0o111 & ~_mask(self._path))
        self._file = None
        self.files.append(self._path)


def parts(head: ChunkHead, raw: bytes) -> Iterator[tuple[Piece, bytes]]:
    """A chunk's bytes by the piece they belong to."""
    ends = [*(piece.at for piece in head.pieces[1:]), head.raw]
    for piece, stop in zip(head.pieces, ends, strict=True):
        yield piece, raw[piece.at : stop]


def inside(folder: Path, name: str) -> Path:
    """`folder / name`, for names that stay inside. Raises Corrupt for others: a file must not choose where it goes."""
    pure = PurePosixPath(name)
    bad = not pure.parts or pure.is_absolute() or ".." in pure.parts or "\0" in name
    if bad or (os.name == "nt" and any(c in name for c in "\\:")):
        raise Corrupt(f"the file holds an entry named {name!r}, which would lie outside of the folder; refused")
    return folder.joinpath(*pure.parts)


def _unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read: {error.strerror}. Nothing was written.")


def _entry(path: Path) -> Entry:
    return Entry.PROGRAM if path.stat().st_mode & 0o100 else Entry.FILE


def _mask(path: Path) -> int:
    """Execute bits only for whom the file may be read."""
    readable = path.stat().st_mode & 0o444
    return 0o111 & ~(readable >> 2)
