"""One request under a search: the ground it runs on, and how its texts become a completion."""

from collections.abc import Sequence
from time import perf_counter

import numpy as np

from steno.core import CacheSpec, Model, Nodes, Session, Step, Want
from steno.core.errors import CapsError

from ._fence import Trail
from ._law import Doubles
from ._nodes import chain_nodes, common
from ._row import Row
from ._text import Decoder
from .base import About, Floats, Hypothesis, Piece, Request, SearchKnob, ShaperKnob


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
        text: Decoder | None = None,
        trail: Trail | None = None,
    ) -> None:
        self.request = request
        self.limit = limit
        self.ends = ends
        self.text = text
        self.forwards = 0
        self._session = session
        self._shapers = shapers
        self._about = About(start=len(request.prompt), ends=ends, text=text)
        self._trail = trail

    def open(self, held: Sequence[int] | None = None) -> Session:
        session = self._session.fork([0])
        if held is not None:
            same = common(held, self.request.prompt[:-1]) if session.caps.crop else 0
            session.crop([same])
            if held[same:]:
                session.prefill([held[same:]])
        return session

    def advance(self, session: Session, texts: Sequence[Sequence[int]]) -> list[Doubles]:
        pasts = [[*self.request.prompt, *text] for text in texts]
        laws: list[Doubles] = []
        for logits, past in zip(self.reach(session, pasts), pasts, strict=True):
            assert logits is not None, "every row lacks a token of its text, and has room for it"
            laws.append(self.law(logits, past))
        return laws

    def reach(self, session: Session, pasts: Sequence[Sequence[int]]) -> list[Floats | None]:
        out: list[Floats | None] = [None] * len(pasts)
        while True:
            lacking = [past[done:] for past, done in zip(pasts, session.lengths, strict=True)]
            if not any(lacking):
                return out
            widest = session.caps.max_width
            chains = [few[: min(widest, room)] for few, room in zip(lacking, session.room(), strict=True)]
            assert any(chains), "every row lacks a token of its text, and has room for it"
            step = self.forward(session, chain_nodes(chains))
            for row, (chain, few) in enumerate(zip(chains, lacking, strict=True)):
                if few and len(chain) == len(few):
                    out[row] = step.logits[row, len(chain) - 1].copy()
            session.commit([list(range(len(chain))) for chain in chains])

    def forward(self, session: Session, nodes: Nodes, want: Want = Want()) -> Step:
        self.forwards += 1
        return session.forward(nodes, want)

    def law(self, logits: Floats, past: Sequence[int]) -> Doubles:
        if self._trail is not None:
            allowed = self._trail.at(past[len(self.request.prompt) :]).mask()
            logits = np.where(allowed, logits, np.float32(-np.inf))
        for shaper in self._shapers:
            logits = shaper.shape_within(logits, past, self._about)
        shifted = logits.astype(np.float64) - logits.max()
        return shifted - np.log(np.exp(shifted).sum())


def hunt(
    knob: SearchKnob,
    row: Row,
    model: Model,
    *,
    capacity: int,
    cache: CacheSpec | None,
    shapers: Sequence[ShaperKnob],
    text: Decoder | None,
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
    field = Field(session, row.request, row.left, row.ends, shapers, text=text, trail=trail)
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
