"""Drafters made of drafters: their parts as fields of a knob, and as running state."""

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import cast

from steno.core import Session, make_knob

from .._trim import scores
from ..base import Draft, DrafterKnob, Floats, Reader, Request, Seen


def part(name: str) -> DrafterKnob:
    """The default of a field that holds a drafter, by name: a method never imports another."""
    return field(default_factory=lambda: cast(DrafterKnob, make_knob(f"decode.draft.{name}", {})))


class Parts:
    """Several drafters over the same rows. Each sees every step, whoever drafted it."""

    def __init__(self, knobs: Sequence[DrafterKnob], rows: int, vocab: int) -> None:
        self.drafters = tuple(knob.open(rows, vocab) for knob in knobs)
        self.top = max(drafter.top for drafter in self.drafters)
        self.laws = any(drafter.laws for drafter in self.drafters)
        self.readers = [drafter for drafter in self.drafters if isinstance(drafter, Reader)]
        self.hidden = tuple(sorted({layer for reader in self.readers for layer in reader.hidden}))
        self.prompts = any(reader.prompts for reader in self.readers)

    def attach(self, session: Session) -> None:
        for reader in self.readers:
            reader.attach(session)

    def read(self, row: int, ids: Sequence[int], hidden: Mapping[int, Floats]) -> None:
        for reader in self.readers:
            reader.read(row, ids, hidden)

    def start(self, row: int, request: Request) -> None:
        for drafter in self.drafters:
            drafter.start(row, request)

    def observe(self, row: int, seen: Seen) -> None:
        for drafter in self.drafters:
            drafter.observe(row, seen if drafter.top == self.top else _narrow(seen, drafter.top))

    def finish(self, row: int, ids: Sequence[int]) -> None:
        for drafter in self.drafters:
            drafter.finish(row, ids)

    def ask(self, part: int, row: int, ids: Sequence[int], budget: int, ahead: Sequence[int] = ()) -> Draft:
        """The draft of one part, without laws: which draft is taken may depend on what was sampled."""
        draft = self.drafters[part].propose(row, ids, budget, ahead)
        return draft if draft.laws is None else replace(draft, laws=None)


def expected(draft: Draft) -> float:
    """Tokens of the draft that its own scores say will be accepted: one child of a node at most is, so they add up."""
    return sum(scores(draft))


def _narrow(seen: Seen, top: int) -> Seen:
    """What a drafter sees that asked for fewer ids per node."""
    if not top or seen.top is None or seen.logits is None:
        return replace(seen, top=None, logits=None)
    return replace(seen, top=seen.top[:, :top], logits=seen.logits[:, :top])
