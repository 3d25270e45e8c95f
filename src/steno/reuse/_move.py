"""Known pieces put where they are needed: keys turned on from the position they were computed at."""

from collections.abc import Sequence

import numpy as np

from steno.core import CacheSpec, Keeper, Model, Rope
from steno.core.errors import CapsError

from .base import Floats, Piece


def turn(keys: Floats, rope: Rope, delta: int) -> Floats:
    """Keys [..., T, D], turned for positions that are `delta` larger: R(p + delta) = R(delta) R(p)."""
    if not delta:
        return keys
    angle = delta * np.array(rope.frequencies)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    size = 2 * len(rope.frequencies)
    first = slice(0, size, 2) if rope.interleaved else slice(0, size // 2)
    second = slice(1, size, 2) if rope.interleaved else slice(size // 2, size)
    out = keys.copy()
    a, b = keys[..., first], keys[..., second]
    out[..., first], out[..., second] = a * cos - b * sin, b * cos + a * sin
    return out


def keeper(model: Model, capacity: int, form: CacheSpec | None) -> Keeper:
    """A one-row session whose KV can be put in from outside. Raises CapsError."""
    session = model.open(1, capacity, form)
    if not isinstance(session, Keeper):
        raise CapsError(f"the state of {model.name} cannot be put together from pieces. Use an attention model.")
    return session


def move(piece: Piece, start: int, rope: Rope | None) -> tuple[Floats, Floats]:
    """Keys and values of a known piece as they are at `start`. Raises CapsError where they cannot be moved there."""
    assert piece.known is not None
    keys, values = piece.known
    if start != piece.at:
        if rope is None:
            raise CapsError("how this model marks positions is not known, so what it computed cannot be moved")
        keys = turn(keys, rope, start - piece.at)
    return keys, values


def place(session: Keeper, piece: Piece) -> None:
    """Append a known piece at the end of row 0. Raises CapsError where it would have to move and cannot."""
    session.append(0, *move(piece, session.lengths[0], session.rope))


def check(pieces: Sequence[Piece]) -> None:
    """Raise ValueError for a piece whose parts are not of one length."""
    for number, piece in enumerate(pieces):
        for part in piece.known or ():
            if part.ndim != 4 or part.shape[2] != len(piece.tokens):
                raise ValueError(
                    f"piece {number} has {len(piece.tokens)} tokens, and keys or values of shape {list(part.shape)}"
                )
