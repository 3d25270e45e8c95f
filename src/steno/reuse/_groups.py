"""Source and answer in two groups of positions, computed as they arrive."""

from collections.abc import Sequence

import numpy as np

from steno.core import CacheSpec, Keeper, Model
from steno.core.errors import CapsError

from ._move import check, keeper, move, place
from ._parallel import Mix, ParallelForm, fill
from .base import Floats, Piece, Woven

Pair = tuple[Floats, Floats]


def stream(model: Model, pieces: Sequence[Piece], offset: int, capacity: int, form: CacheSpec | None) -> Woven:
    """A row whose even pieces are a source at 0, 1, ..., and whose odd ones answer it at `offset`, `offset` + 1, ..."""
    check(pieces)
    if form is not None:
        raise CapsError("groups of positions are kept as they were computed, so they take no cache form. Give none.")
    source = keeper(model, sum(len(piece.tokens) for piece in pieces[::2]), None)
    answer: list[Pair] = []
    length = offset
    for number, piece in enumerate(pieces):
        if not piece.tokens:
            continue
        if number % 2 == 0:
            if piece.known is None:
                source.prefill([list(piece.tokens)])
            else:
                place(source, piece)
            continue
        if piece.known is not None:
            answer.append(move(piece, length, source.rope))
        else:
            behind = _row(model, source, answer, length, length + len(piece.tokens))
            behind.prefill([list(piece.tokens)])
            answer.append(behind.read(0, length))
        length += len(piece.tokens)
    reused = sum(len(piece.tokens) for piece in pieces if piece.known is not None)
    total = sum(len(piece.tokens) for piece in pieces)
    return Woven(_row(model, source, answer, length, capacity), total - reused, reused)


def _row(model: Model, source: Keeper, answer: Sequence[Pair], length: int, capacity: int) -> Keeper:
    """A row that holds all of the source and of the answer so far, and goes on at position `length`."""
    row = keeper(model, capacity, ParallelForm(length, Mix()))
    keys, values = (np.concatenate(parts, 2) for parts in zip(source.read(0), *answer, strict=True))
    fill(row, [(keys, values)], length)
    return row
