"""PIE: after an edit, the keys behind it are turned to their new positions, and only the new tokens are computed.

Let the Code LLM Edit Itself When You Edit the Code, sections 3.2 and 3.3. An edit that puts m tokens in the place of n
moves everything behind it by m - n. Rotary keys move exactly: R(p + d) = R(d) R(p). What stays wrong is that the tokens
behind the edit have not seen it: from the second layer on, their keys and values are those of the old text.

What differs from the paper: several edits are woven in one pass, each new stretch attending to all that now stands
before it, earlier edits included. Values are kept as they are, as in the paper. In a cache form, keys are those that
attention would see, and are encoded anew where they end up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from steno.core import CacheSpec, Card, Keeper, Model

from ._move import check, keeper, place
from .base import Piece, ReuseKnob, Woven

CARD = Card(
    paper="Let the Code LLM Edit Itself When You Edit the Code",
    keeps="near",
    backends=("hf", "native"),
)


@dataclass(frozen=True, kw_only=True)
class Pie(ReuseKnob):
    """Reuse every known token as it is, at the position it has now."""

    card: ClassVar[Card] = CARD

    def weave(self, model: Model, pieces: Sequence[Piece], *, capacity: int, form: CacheSpec | None = None) -> Woven:
        check(pieces)
        session = keeper(model, capacity, form)
        reused = 0
        for piece in pieces:
            if piece.known is None:
                session.prefill([list(piece.tokens)])
            else:
                place(session, piece)
                reused += len(piece.tokens)
        return Woven(session, session.lengths[0] - reused, reused)


@dataclass(frozen=True, slots=True)
class Edit:
    """`tokens` in the place of the tokens [start, stop) of the text before any edit."""

    start: int
    stop: int
    tokens: tuple[int, ...] = ()


def edited(session: Keeper, row: int, ids: Sequence[int], edits: Sequence[Edit]) -> list[Piece]:
    """The pieces of a row's text, whose tokens are `ids`, after `edits` that do not overlap.

    Raises ValueError for edits that overlap or lie outside the text.
    """
    if len(ids) != session.lengths[row]:
        raise ValueError(f"row {row} holds {session.lengths[row]} tokens, got {len(ids)} ids")
    keys, values = session.read(row)
    whole = Piece(tokens=tuple(ids), keys=keys, values=values)
    out: list[Piece] = []
    end = 0
    for edit in sorted(edits, key=lambda edit: (edit.start, edit.stop)):
        if not end <= edit.start <= edit.stop <= len(ids):
            raise ValueError(f"the edit of {edit.start} to {edit.stop} overlaps another, or ends behind {len(ids)}")
        out += [whole.cut(end, edit.start), Piece(tokens=edit.tokens)]
        end = edit.stop
    return [piece for piece in (*out, whole.cut(end)) if piece.tokens]
