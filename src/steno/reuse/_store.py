"""A row's KV in a file: safetensors, so that reading it runs nothing, under a header that says whose it is.

The file's metadata holds one JSON text: `head`, itself JSON, and a SHA-256 over it and over every array. `head` says
the version of the format, the session's stamp (model, arithmetic, cache form), which tokens the arrays are of, and how
the parts fit. So a file is refused before anything of it is used: of another model, of another form, cut or altered.

    write_row(path, session, 0, ids)          # ids: the row's committed tokens
    ids = read_row(path, session, 0)          # the row of the same, or another, session of that model and form
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as parse
from safetensors.numpy import save as serialise

from steno.core import Session, Stretch
from steno.core.errors import CapsError, DataError, ModelError
from steno.core.files import write_bytes
from steno.core.stretch import Keeper

FORMAT = "steno kv 1"
KEY = "steno"
IDS = "ids"
"""Name of the array of token ids beside those of the KV."""

Arrays = Mapping[str, npt.NDArray[np.generic]]


def write_row(path: Path, session: Session, row: int, ids: Sequence[int]) -> None:
    """Store a row; `ids` are its committed tokens, which `read_row` hands back.

    Raises ValueError where they are not as many as the row's, CapsError for a session whose KV stays inside.
    """
    keeper = keeping(session)
    if len(ids) != session.lengths[row]:
        raise ValueError(f"row {row} holds {session.lengths[row]} tokens, got {len(ids)} ids")
    write_bytes(path, pack(keeper.save(row), keeper.stamp, ids))


def read_row(path: Path, session: Session, row: int) -> tuple[int, ...]:
    """Put a stored row into an empty one and return its tokens.

    Raises DataError for a damaged file, ModelError for one of another model or cache form, PromptError where the row
    would outgrow its capacity.
    """
    keeper = keeping(session)
    try:
        stretch, ids = unpack(path.read_bytes(), keeper.stamp)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except (DataError, ModelError) as error:
        raise type(error)(f"{path}: {error}") from None
    keeper.load(row, stretch)
    return ids


def keeping(session: Session) -> Keeper:
    """The session, if its KV can be taken out. Raises CapsError."""
    if not isinstance(session, Keeper):
        raise CapsError("this model's state cannot be taken out of its session. Use an attention model, native or hf.")
    return session


def pack(stretch: Stretch, stamp: str, ids: Sequence[int]) -> bytes:
    """The bytes of a file. `ids` are the tokens of the stretch."""
    head = json.dumps(
        {"format": FORMAT, "stamp": stamp, "start": stretch.start, "stop": stretch.stop, "meta": dict(stretch.meta)}
    )
    arrays = {**stretch.arrays, IDS: np.asarray(ids, np.int32)}
    tidy = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    # One key: the order of several is not fixed, and the same row gives the same file.
    return serialise(tidy, metadata={KEY: json.dumps({"head": head, "sha256": _digest(head, tidy)})})


def unpack(data: bytes, stamp: str) -> tuple[Stretch, tuple[int, ...]]:
    """(stretch, ids) of a file. Raises DataError for a damaged one, ModelError for one with another stamp."""
    try:
        arrays: Arrays = parse(data)
        size = int.from_bytes(data[:8], "little")
        told = cast(dict[str, str], json.loads(json.loads(data[8 : 8 + size])["__metadata__"][KEY]))
        text, digest = told["head"], told["sha256"]
        head = cast(dict[str, object], json.loads(text))
        start, stop, meta = cast(int, head["start"]), cast(int, head["stop"]), cast(dict[str, object], head["meta"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"no whole file of stored KV: {str(error) or type(error).__name__}") from None
    if head.get("format") != FORMAT:
        raise DataError(f"the format is {head.get('format')!r}, this version reads {FORMAT!r}")
    if _digest(text, arrays) != digest or IDS not in arrays:
        raise DataError("the contents do not match their digest: the file was altered")
    if head.get("stamp") != stamp:
        raise ModelError("stored by another model, or in another cache form. Open the session as it was opened then.")
    ids = tuple(int(i) for i in cast(npt.NDArray[np.int32], arrays[IDS]))
    rest = {name: array for name, array in arrays.items() if name != IDS}
    return Stretch(start=start, stop=stop, arrays=rest, meta=meta), ids


def _digest(head: str, arrays: Arrays) -> str:
    digest = hashlib.sha256(head.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\0{name} {array.dtype} {array.shape}\0".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()
