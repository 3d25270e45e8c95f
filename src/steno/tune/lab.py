"""Where a search's measurements come from: one arm over one unit of prompts, timed.

`Lab` is the protocol; `ModelLab` runs the real model. Tests script their own, so that the search is checked without a
clock.
"""

from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from typing import Protocol

from steno.core import CacheSpec, Model, Plan
from steno.core.errors import StenoError
from steno.decode import Completion, CostTable, generate
from steno.measure import Fidelity, Span
from steno.measure.base import Bytes
from steno.measure.bytes import cache_form
from steno.measure.speed import Arm
from steno.tokens import Tokenizer, Words

from .journal import Lap, Out
from .prompts import Task

Unit = tuple[Task, ...]
"""Prompts that run together: one, or as many as the batch holds."""

MOST_TEXTS = 16
"""Texts that fidelity is measured on; their number is in the record."""

MOST_LENGTH = 1024
"""Most tokens of a text that fidelity is measured on."""


class Lab(Protocol):
    """Measures. A failure that steno raises on purpose comes back as a lap with `error`."""

    peer: str
    """Name of the engine measured beside steno, "" for none."""

    peer_version: str

    def run(self, plan: Plan, unit: Unit) -> Lap:
        """One pass of `plan` over a unit."""
        ...

    def run_peer(self, unit: Unit) -> Lap:
        """One pass of the other engine."""
        ...

    def fidelity(self, base: Plan, plan: Plan, texts: Sequence[Sequence[int]]) -> Fidelity:
        """How far `plan` changes predictions on `texts`."""
        ...

    def bytes(self, plan: Plan, ids: Sequence[int]) -> Bytes:
        """Live memory under `plan` with `ids` in the cache."""
        ...


class ModelLab:
    """A loaded model. `capacity` is one for all arms, so that no plan gains by a smaller cache."""

    def __init__(self, model: Model, tokenizer: Tokenizer | None, capacity: int, peer: Arm | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.capacity = capacity
        self.peer = peer.name if peer else ""
        self.peer_version = version(peer.name) if peer else ""
        self._peer = peer
        self._costs: dict[CacheSpec | None, CostTable] = {}

    def run(self, plan: Plan, unit: Unit) -> Lap:
        requests = [task.request for task in unit]
        try:
            done = generate(
                self.model,
                requests,
                plan,
                batch=len(unit),
                text=self.tokenizer.decode if self.tokenizer else None,
                costs=self._cost_table(plan, requests[0].prompt) if len(unit) == 1 else None,
                capacity=self.capacity,
                words=self._words if plan.find("decode.constrain") else None,
            )
        except StenoError as error:
            return Lap(error=str(error))
        stats = [completion.stats for completion in done]
        return Lap(
            prefill_s=sum(s.prefill_s for s in stats),
            decode_s=sum(s.decode_s for s in stats),
            decoded=sum(len(completion.tokens) for completion in done),
            outs=tuple(_out(completion) for completion in done),
        )

    @cached_property
    def _words(self) -> Words | None:
        """What tokens write, for constraints; a table model has no tokenizer and says so."""
        return Words.of(self.tokenizer, self.model.vocab, self.model.eos) if self.tokenizer else None

    def _cost_table(self, plan: Plan, prompt: Sequence[int]) -> CostTable:
        """Costs of widths under the plan's cache form: taken outside the clock, the same for all plans of that form."""
        form = cache_form(plan)
        if form not in self._costs:
            session = self.model.open(1, self.capacity, form)
            session.prefill([prompt[:-1]])
            self._costs[form] = CostTable.measure(session)
        return self._costs[form]

    def run_peer(self, unit: Unit) -> Lap:
        if self._peer is None:
            raise ValueError("this lab has no peer")
        times = [self._peer.run(task.request.prompt, task.request.max_tokens) for task in unit]
        return Lap(
            prefill_s=sum(t.prefill_s for t in times),
            decode_s=sum(t.decode_s for t in times),
            decoded=sum(t.decoded for t in times),
            outs=tuple(Out(tokens=t.tokens) for t in times),
        )

    def fidelity(self, base: Plan, plan: Plan, texts: Sequence[Sequence[int]]) -> Fidelity:
        from steno.measure.fidelity import Side, fidelity

        shown = [text[:MOST_LENGTH] for text in texts if len(text) > 1][:MOST_TEXTS]
        return fidelity(Side(self.model, base), Side(self.model, plan), shown, tokenizer=self.tokenizer)

    def bytes(self, plan: Plan, ids: Sequence[int]) -> Bytes:
        from steno.measure.bytes import measure

        return measure(self.model, plan, [ids])


def _out(done: Completion) -> Out:
    return Out(
        tokens=done.tokens,
        finish=done.finish,
        passes=done.stats.passes,
        drafted=done.stats.drafted,
        accepted=done.stats.accepted,
        histogram=done.stats.histogram,
        spans=tuple(
            Span(text=piece.text, tokens=len(piece.tokens), drafted=piece.drafted, source=piece.source)
            for piece in done.pieces
        ),
    )
