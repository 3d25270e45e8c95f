"""Suffix automaton: the longest end of the text that occurred before, at O(1) a token, and what followed it first.

The automaton of section 3 of the paper, grown token by token over prompt and output (Blumer et al.): its newest state's
suffix link is the longest end that has an earlier occurrence. A match of m tokens drafts 1 + 4m tokens. The paper turns
to another drafter below five tokens: `decode.draft.first` with this drafter and any second one is that rule.

What differs from the paper: no static automaton over a corpus.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from steno.core import Card, Span

from ..base import Draft, Drafter, DrafterKnob, Request, Seen

CARD = Card(
    paper="SAM Decoding: Speculative Decoding via Suffix Automaton",
    keeps="bits",
    breaks=("decode.draft", "decode.search"),
)

GROWTH = 4


@dataclass(frozen=True, kw_only=True)
class Automaton(DrafterKnob):
    """Matches below `min_match` tokens draft nothing; `num_tokens` bounds a draft."""

    card: ClassVar[Card] = CARD

    min_match: Annotated[int, Span(1, 64, "tokens")] = 2
    num_tokens: Annotated[int, Span(1, 255, "tokens")] = 40

    def open(self, rows: int, vocab: int) -> Drafter:
        return _Automaton(self, rows)


class _Automaton:
    top = 0
    laws = False

    def __init__(self, knob: Automaton, rows: int) -> None:
        self.knob = knob
        self.own = [States() for _ in range(rows)]

    def start(self, row: int, request: Request) -> None:
        self.own[row] = States()
        self.own[row].extend(request.prompt)

    def propose(self, row: int, ids: Sequence[int], budget: int, ahead: Sequence[int] = ()) -> Draft:
        states = self.own[row]
        states.extend(ids[len(states.text) :])
        match, end = states.longest(ahead)
        if match < self.knob.min_match:
            return Draft()
        count = min(budget, self.knob.num_tokens, 1 + GROWTH * match)
        text = [*states.text, *ahead] if ahead else states.text
        found = text[end : end + count]
        period = len(text) - end
        while len(found) < count:
            found.append(found[len(found) - period])
        return Draft.chain(found, tuple((1 - 0.5 / match) ** (i + 1) for i in range(count)), "automaton")

    def observe(self, row: int, seen: Seen) -> None:
        pass

    def finish(self, row: int, ids: Sequence[int]) -> None:
        self.own[row] = States()


class States:
    """The automaton of a text that grows. State 0 is the empty context.

    length[s]  the longest context of the state
    link[s]    the state of its longest end with more occurrences
    end[s]     the place after the state's first occurrence
    """

    def __init__(self) -> None:
        self.text: list[int] = []
        self.after: list[dict[int, int]] = [{}]
        self.length = [0]
        self.link = [-1]
        self.end = [0]
        self.last = 0

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens."""
        for token in tokens:
            self.text.append(token)
            self._append(token)

    def longest(self, ahead: Sequence[int] = ()) -> tuple[int, int]:
        """(tokens, place after it) of the longest end of the text and `ahead` that occurred before the end."""
        state = max(self.link[self.last], 0)
        match = self.length[state]
        for token in ahead:
            while state and token not in self.after[state]:
                state = self.link[state]
                match = self.length[state]
            if token in self.after[state]:
                state, match = self.after[state][token], match + 1
        return match, self.end[state]

    def _append(self, token: int) -> None:
        new = self._state(self.length[self.last] + 1, {}, len(self.text))
        state, self.last = self.last, new
        while state >= 0 and token not in self.after[state]:
            self.after[state][token] = new
            state = self.link[state]
        if state < 0:
            self.link[new] = 0
            return
        found = self.after[state][token]
        if self.length[found] != self.length[state] + 1:
            found = self._split(state, token, found)
        self.link[new] = found

    def _split(self, state: int, token: int, found: int) -> int:
        """The contexts of `found` that continue `state` by `token` become a state of their own."""
        clone = self._state(self.length[state] + 1, dict(self.after[found]), self.end[found])
        self.link[clone] = self.link[found]
        self.link[found] = clone
        while state >= 0 and self.after[state].get(token) == found:
            self.after[state][token] = clone
            state = self.link[state]
        return clone

    def _state(self, length: int, after: dict[int, int], end: int) -> int:
        self.after.append(after)
        self.length.append(length)
        self.link.append(-1)
        self.end.append(end)
        return len(self.length) - 1
