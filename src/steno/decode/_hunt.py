"""One request under a search: the ground it runs on, and how its texts become a completion."""

from collections.abc import Sequence
from time import perf_counter

import numpy as np

from steno.core import PAD, ROOT, CacheSpec, Model, Nodes, Session
from steno.core.errors import CapsError

from ._fence import Trail
from ._law import Doubles
from ._row import Row
from .base import Floats, Hypothesis, Piece, Request, SearchKnob, ShaperKnob


class Field:
    """Implements `Ground`. Counts forwards; everything a search asks of the model goes through its sessions."""

    def __init__(
        self,
        session: Session,
        request: Request,
        limit: int,
        ends: frozenset[int],
        shapers: Sequence[ShaperKnob],
        *,
        trail: Trail | None = None,
    ) -> None:
        self.request = request
        self.limit = limit
        self.ends = ends
        self.forwards = 0
        self._session = session
        self._shapers = shapers
        self._trail = trail

    def open(self) -> Session:
        return self._session.fork([0])

    def advance(self, session: Session, texts: Sequence[Sequence[int]]) -> list[Doubles]:
        pasts = [[*self.request.prompt, *text] for text in texts]
        logits: dict[int, Floats] = {}
        while len(logits) < len(pasts):
            lacking = [past[done:] for past, done in zip(pasts, session.lengths, strict=True)]
            widest = session.caps.max_width
            chains = [few[: min(widest, room)] for few, room in zip(lacking, session.room(), strict=True)]
            assert any(chains), "every row lacks a token of its text, and has room for it"
            step = session.forward(_chains(chains))
            self.forwards += 1
            for row, (chain, few) in enumerate(zip(chains, lacking, strict=True)):
                if few and len(chain) == len(few):
                    logits[row] = step.logits[row, len(chain) - 1].copy()
            session.commit([list(range(len(chain))) for chain in chains])
        return [self._law(logits[row], past, text) for row, (past, text) in enumerate(zip(pasts, texts, strict=True))]

    def _law(self, logits: Floats, past: Sequence[int], text: Sequence[int]) -> Doubles:
        if self._trail is not None:
            logits = np.where(self._trail.at(text).mask(), logits, np.float32(-np.inf))
        for shaper in self._shapers:
            logits = shaper.shape(logits, past)
        shifted = logits.astype(np.float64) - logits.max()
        return shifted - np.log(np.exp(shifted).sum())


def _chains(rows: Sequence[Sequence[int]]) -> Nodes:
    """One chain per row, padded to the longest."""
    width = max(map(len, rows))
    tokens = np.zeros((len(rows), width), np.int32)
    parents = np.full((len(rows), width), PAD, np.int32)
    for row, chain in enumerate(rows):
        tokens[row, : len(chain)] = chain
        parents[row, : len(chain)] = np.arange(ROOT, len(chain) - 1)
    return Nodes(tokens=tokens, parents=parents)


def hunt(
    knob: SearchKnob,
    row: Row,
    model: Model,
    *,
    capacity: int,
    cache: CacheSpec | None,
    shapers: Sequence[ShaperKnob],
) -> tuple[Piece, tuple[Hypothesis, ...]]:
    """Search a continuation of the row's request: the best text as one piece of the row, and all texts, best first.

    Raises CapsError where the model's sessions lack what the search's card asks for, and where a search that follows
    ways of its own finds no text that the request's constraint allows.
    """
    start = perf_counter()
    session = model.open(1, capacity, cache)
    for cap in knob.card.caps:
        if not getattr(session.caps, cap):
            raise CapsError(
                f"{knob.name} needs sessions with '{cap}', which {model.name} lacks. Choose another --backend."
            )
    if len(row.ids) > 1:
        session.prefill([row.ids[:-1]])
    filled = perf_counter()
    trail = None if row.place is None else Trail(row.place)
    field = Field(session, row.request, row.left, row.ends, shapers, trail=trail)
    found = tuple(knob.search(field))
    if trail is not None:
        found = tuple(text for text in found if trail.allows(text.tokens))
        if not found:
            raise CapsError(
                f"request {row.request.number}: {knob.name} found no text that its constraint allows. Use "
                "decode.search.diverse_beam, or no search."
            )
    piece = row.take(list(found[0].tokens), 0, "")
    row.stats.prefill_s = filled - start
    row.stats.decode_s = row.stats.forward_s = perf_counter() - filled
    row.stats.passes = field.forwards
    return piece, found
