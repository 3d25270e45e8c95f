"""Constraints around the loop and the searches: where texts start, what is drafted for them, and where they stand.

A constraint decides what comes out and a draft never does, so what is done to drafts here changes speed only.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from steno.core import ROOT
from steno.core.errors import PlanError, PromptError

from ._trim import keep, scores
from .base import Constraint, ConstraintKnob, Draft, Request

if TYPE_CHECKING:
    from steno.tokens import Words


class Fence:
    """The constraints of one loop: the plan's, and those of requests that bring their own."""

    def __init__(self, knob: ConstraintKnob | None, words: "Words | None", eos: frozenset[int]) -> None:
        self._knob = knob
        self._words = words
        self._eos = eos
        self._starts: dict[ConstraintKnob, Constraint] = {}

    def knob(self, request: Request) -> ConstraintKnob | None:
        """What holds for a request."""
        return request.constrain or self._knob

    def start(self, request: Request) -> Constraint | None:
        """The place before the request's first token; None where nothing is asked of it.

        Raises PlanError where the loop cannot know what tokens write, PromptError for a text that could not end.
        """
        knob = self.knob(request)
        if knob is None:
            return None
        if self._words is None:
            raise PlanError(
                f"{knob.name} needs to know what tokens write, and nothing said so: pass words=Words.of(tokenizer, "
                "model.vocab, model.eos). Table models have no tokenizer."
            )
        if knob.closes and (request.ignore_eos or not self._eos):
            why = "the request ignores it (ignore_eos)" if self._eos else "the model declares none (eos_token_id)"
            raise PromptError(f"request {request.number}: {knob.name} needs an end token, and {why}.")
        if knob not in self._starts:
            self._starts[knob] = knob.open(self._words)
        return self._starts[knob]


def led(forced: Sequence[int], draft: Draft) -> Draft:
    """`draft` below a chain of forced tokens, which claim to be certain.

    Chosen tokens stand above sampled ones, so the laws of these are dropped: a token without a law is judged as chosen.
    """
    lead = Draft.chain(forced, [1.0] * len(forced), "grammar")
    if not draft.tokens:
        return lead
    size, last = len(forced), len(forced) - 1
    below = [last if parent == ROOT else parent + size for parent in draft.parents]
    return Draft(
        (*lead.tokens, *draft.tokens),
        (*lead.parents, *below),
        (*lead.scores, *scores(draft)),
        None,
        f"grammar+{draft.source}",
    )


def lawful(draft: Draft, place: Constraint) -> Draft:
    """`draft` without tokens that may not come, nor what hangs off them: they would be computed to be rejected.

    Sampled drafts stay whole, because choosing among them by what was sampled would bend their law; so do nodes that
    a drafter wants to see run.
    """
    if draft.laws is not None:
        return draft
    places: dict[int, Constraint] = {ROOT: place}
    chosen: list[int] = []
    for i, (token, parent) in enumerate(zip(draft.tokens, draft.parents, strict=True)):
        here = places.get(parent)
        if here is not None and here.allows(token):
            places[i] = here.advance(token)
            chosen.append(i)
        elif i < draft.kept:
            chosen.append(i)
    return draft if len(chosen) == len(draft.tokens) else keep(draft, chosen)


class Trail:
    """The places of the texts of one search, each found from the text that is a token shorter."""

    def __init__(self, start: Constraint) -> None:
        self._known: dict[tuple[int, ...], Constraint] = {(): start}

    def at(self, text: Sequence[int]) -> Constraint:
        """The place after `text`, whose tokens all may come."""
        known = self._known
        size = len(text)
        while tuple(text[:size]) not in known:
            size -= 1
        place = known[tuple(text[:size])]
        for end in range(size, len(text)):
            place = known[tuple(text[: end + 1])] = place.advance(text[end])
        return place

    def allows(self, text: Sequence[int]) -> bool:
        """Whether every token of `text` may come."""
        return all(self.at(text[:end]).allows(token) for end, token in enumerate(text))
