"""What the acceptor sees of one row of one forward."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

from steno.core import ROOT, Key, Step

from ._text import Decoder
from .base import About, Constraint, Draft, Request, ShaperKnob

Floats = npt.NDArray[np.float32]


class NodeView:
    """Implements `View`; one object serves all rows and steps.

    `columns[i]` is where draft token i stands in the forward, -1 where it does not: what is asked of such a node is
    answered with token 0 and discarded by the loop (the confirming pass runs the accepted path only).

    A constraint acts before the shapers, which therefore cut and mix what may come.
    """

    def __init__(
        self, shapers: Sequence[ShaperKnob], eos: frozenset[int] = frozenset(), text: Decoder | None = None
    ) -> None:
        self._shapers = tuple(shapers)
        self._eos = eos
        self._text = text
        self._about = About()
        self._step: Step | None = None
        self._best: list[list[int]] | None = None
        self._logits: Floats | None = None
        self._row = 0
        self._request: Request | None = None
        self._ids: list[int] = []
        self._draft = Draft()
        self._columns: Sequence[int] | None = None
        self._places: dict[int, Constraint | None] = {}

    def load(self, step: Step) -> None:
        """Look at another forward."""
        self._step = step
        self._best = None
        self._logits = None

    def aim(
        self,
        row: int,
        request: Request,
        ids: list[int],
        draft: Draft,
        columns: Sequence[int] | None = None,
        *,
        place: Constraint | None = None,
    ) -> None:
        """Look at another row, whose pending token stands at `place`."""
        self._row = row
        if request is not self._request and self._shapers:
            ends = frozenset[int]() if request.ignore_eos else self._eos
            self._about = About(start=len(request.prompt), ends=ends, text=self._text)
        self._request = request
        self._ids = ids
        self._draft = draft
        self._columns = columns
        self._places = {ROOT: place}

    def best(self, node: int) -> int:
        if self._shapers:
            return int(self.logits(node).argmax())
        if self._best is None:
            assert self._step is not None
            self._best = cast(list[list[int]], self._step.argmax.tolist())
        column = self._column(node)
        found = self._best[self._row][column] if column >= 0 else 0
        place = self._place(node)
        # What is best of all and may come is best of what may come: most tokens need no mask.
        return found if place is None or place.allows(found) else int(self.logits(node).argmax())

    def logits(self, node: int) -> Floats:
        if self._logits is None:
            assert self._step is not None
            self._logits = self._step.logits
        column = self._column(node)
        if column < 0:
            return np.zeros(self._logits.shape[-1], np.float32)
        out = self._logits[self._row, column]
        place = self._place(node)
        if place is not None:
            out = np.where(place.mask(), out, np.float32(-np.inf))
        if self._shapers:
            past = self._ids + self._branch(node)
            for shaper in self._shapers:
                out = shaper.shape_within(out, past, self._about)
        return out

    def key(self, node: int, purpose: str) -> Key:
        request = self._request
        assert request is not None
        return Key(request.seed, request.number, len(self._ids) + len(self._branch(node)), purpose)

    def _column(self, node: int) -> int:
        if node < 0:
            return 0
        return node + 1 if self._columns is None else self._columns[node]

    def _place(self, node: int) -> Constraint | None:
        """Where the text stands after `node`; None where nothing is asked of it, or past a token that may not come."""
        if node not in self._places:
            above = self._place(self._draft.parents[node])
            token = self._draft.tokens[node]
            self._places[node] = above.advance(token) if above is not None and above.allows(token) else None
        return self._places[node]

    def _branch(self, node: int) -> list[int]:
        """Draft tokens from the pending token's child down to `node`."""
        out: list[int] = []
        while node >= 0:
            out.append(self._draft.tokens[node])
            node = self._draft.parents[node]
        return out[::-1]
