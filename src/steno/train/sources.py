"""Where text comes from: the standard library, installed packages, and folders of files.

Every source is optional: what is not on the machine is reported as missing and the rest goes on.
"""

import os
import re
import sysconfig
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

from steno.train._licence import copyleft_header, permissive
from steno.train.base import Document, RecipeError
from steno.train.recipe import Source

_VENDORED = {"_vendor", "vendor", "vendored", "_vendored", "third_party", "extern", "externals", "_bundled", "typeshed"}
_STDLIB_SKIP = {"site-packages", "lib2to3", "pydoc_data", "ensurepip", "encodings", "lib-dynload", "turtledemo"}
_TESTS = re.compile(
    r"(^|/)(tests?|testing|idle_test|testsuite|benchmarks?)/|(^|/)(test_[^/]*|[^/]*_tests?|conftest)\.py$"
)
_DOC_SUFFIXES = (".rst", ".md", ".rst.txt")


def read(source: Source) -> tuple[list[Document], dict[str, str]]:
    """All documents of one source, and the licence of each part it found (empty when the source is not here)."""
    if source.kind == "stdlib":
        return _stdlib(source)
    if source.kind == "packages":
        return _packages(source)
    if source.kind == "files":
        return _files(source)
    raise RecipeError(f"Recipe source {source.name!r}: kind must be stdlib, packages or files; got {source.kind!r}.")


def place(path: str) -> Path | None:
    """A recipe path with environment variables filled in, or None where a variable is not set or nothing is there."""
    filled = os.path.expandvars(path)
    if "$" in filled:
        return None
    found = Path(filled).expanduser()
    return found if found.exists() else None


def is_test(path: str) -> bool:
    """Whether a path is a test file: tests are plentiful and repetitive, so they are a bucket of their own."""
    return _TESTS.search(path) is not None


def _stdlib(source: Source) -> tuple[list[Document], dict[str, str]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    documents = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root).as_posix()
        parts = relative.split("/")
        if _STDLIB_SKIP & set(parts) or parts[0].startswith(("config-", "_sysconfigdata", "__phello__")):
            continue
        text = _text(path.read_bytes())
        if text is not None and not parts[-1].startswith("_sysconfigdata"):
            bucket = "tests" if is_test(relative) else source.bucket
            documents.append(Document(source=source.name, path=relative, bucket=bucket, licence="PSF-2.0", text=text))
    return documents, {source.name: "PSF-2.0"}


def _packages(source: Source) -> tuple[list[Document], dict[str, str]]:
    root = Path(sysconfig.get_paths()["purelib"]) if source.path == "" else place(source.path)
    if root is None:
        return [], {}
    documents: list[Document] = []
    licences: dict[str, str] = {}
    for distribution in sorted(distributions(path=[str(root)]), key=lambda d: d.metadata["Name"].lower()):
        name = distribution.metadata["Name"].lower()
        licence = permissive(distribution.metadata)
        if licence is None or name in source.skip:
            continue
        found = list(_package(distribution, source, name, licence, root))
        if found:
            licences[name] = licence
            documents += found
    return documents, licences


def _package(distribution: Distribution, source: Source, name: str, licence: str, root: Path) -> Iterator[Document]:
    for entry in sorted(str(file) for file in distribution.files or []):
        code = entry.endswith(".py")
        if not code and not entry.endswith(_DOC_SUFFIXES):
            continue
        path = root / entry
        if ".." in entry or _VENDORED & set(entry.split("/")) or ".dist-info/" in entry or not path.is_file():
            continue
        text = _text(path.read_bytes())
        if text is None or copyleft_header(text):
            continue
        bucket = "docs" if not code else "tests" if is_test(entry) else source.bucket
        yield Document(source=name, path=entry, bucket=bucket, licence=licence, text=text)


def _files(source: Source) -> tuple[list[Document], dict[str, str]]:
    root = place(source.path)
    if root is None:
        return [], {}
    paths = [root] if root.is_file() else sorted(p for g in source.globs for p in root.rglob(g) if p.is_file())
    documents = []
    for path in paths:
        relative = path.name if root.is_file() else path.relative_to(root).as_posix()
        for inner, data in _members(path, relative):
            text = _text(data)
            if text is not None:
                documents.append(
                    Document(source=source.name, path=inner, bucket=source.bucket, licence=source.licence, text=text)
                )
    return documents, {source.name: source.licence} if documents else {}


def _members(path: Path, relative: str) -> Iterator[tuple[str, bytes]]:
    if path.suffix != ".zip":
        yield relative, path.read_bytes()
        return
    with zipfile.ZipFile(path) as archive:
        for member in sorted(archive.namelist()):
            if not member.endswith("/"):
                yield f"{relative}/{member}", archive.read(member)


def _text(data: bytes) -> str | None:
    """Text with plain newlines. Old English texts come in Latin-1; anything with control bytes is not text."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
        if any(ch in text for ch in "\x00\x01\x02\x7f\x80\x81"):
            return None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
