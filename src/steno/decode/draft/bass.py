"""BASS's draft length: one length for the whole batch, longer after a full hit and shorter after a miss.

Algorithm 1 of the paper. The length is min(l + 2, 32) after a step in which some row accepted all of its draft, else
max(1, the most accepted, l - ceil(l / 10) - s), where s is 1 on the second miss in a row. The ragged batch itself, rows
of one step accepting different numbers of tokens, is what the loop does for every drafter.

What differs from the paper: any drafter in place of a draft model, so a row's draft may be shorter than the length and
is then full at its own end; of a tree the nodes within the length run. The loop's own rule, by measured costs, does not
touch these drafts: the two can be compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from steno.core import Card, Span

from .._trim import depths, keep
from ..base import Draft, Drafter, DrafterKnob, Seen
from ._parts import Parts, part

CARD = Card(
    paper="BASS: Batched Attention-optimized Speculative Sampling",
    keeps="bits",
    breaks=("decode.draft", "decode.search"),
)

RAISE, DIVISOR, LIMIT = 2, 10, 32


@dataclass(frozen=True, kw_only=True)
class Bass(DrafterKnob):
    """Drafts of `drafter`, `length` tokens long at first."""

    card: ClassVar[Card] = CARD

    drafter: DrafterKnob = part("lookup")
    length: Annotated[int, Span(1, 32, "tokens")] = 7

    def open(self, rows: int, vocab: int) -> Drafter:
        return _Bass(self, rows, vocab)


class _Bass(Parts):
    """`hits` holds (accepted, whether that was all) of the rows of the running step; the next proposal closes it."""

    def __init__(self, knob: Bass, rows: int, vocab: int) -> None:
        super().__init__((knob.drafter,), rows, vocab)
        self.length = knob.length
        self.missed = 0
        self.hits: list[tuple[int, bool]] = []

    def propose(self, row: int, ids: Sequence[int], budget: int, ahead: Sequence[int] = ()) -> Draft:
        if self.hits:
            self.length, self.missed = adjust(self.length, self.missed, self.hits)
            self.hits = []
        draft = self.ask(0, row, ids, budget, ahead)
        short = keep(draft, [i for i, depth in enumerate(depths(draft.parents)) if depth < self.length])
        return replace(short, kept=len(short.tokens))

    def observe(self, row: int, seen: Seen) -> None:
        super().observe(row, seen)
        if len(seen.tokens) > 1:
            self.hits.append((len(seen.path) - 1, seen.path[-1] not in seen.parents))


def adjust(length: int, missed: int, hits: Sequence[tuple[int, bool]]) -> tuple[int, int]:
    """The next length, and 1 after a miss.

    >>> adjust(7, 0, [(3, False), (7, True)]), adjust(7, 0, [(3, False)]), adjust(6, 1, [(2, False)])
    ((9, 0), (6, 1), (4, 1))
    """
    if any(whole for _, whole in hits):
        return min(length + RAISE, LIMIT), 0
    return max(1, *(count for count, _ in hits), length - -(-length // DIVISOR) - missed), 1
