"""EXSPEC: hold more texts than a step runs, and run those together that are equally long.

Section 4 of the paper: a pool of `window` times the batch, of which each step takes a group of one length, because a
batch of one length needs no padding and no realignment of its caches; where no length has `group` texts, it falls back
to a ragged batch (EQSPEC), which takes the texts that came first.

What differs from the paper: here every token stands at its own position, so a ragged step needs neither padding nor
realignment, and grouping saves nothing that is spent. EQSPEC's own part, rows of one step that accept different numbers
of tokens, is what the loop does for every drafter. The schedule is here so that this can be measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from steno.core import Card, Span

from ..base import ScheduleKnob

CARD = Card(
    paper="Batch Speculative Decoding Done Right",
    keeps="bits",
    breaks=("decode.schedule", "decode.search"),
)


@dataclass(frozen=True, kw_only=True)
class Exspec(ScheduleKnob):
    """`window` is the paper's 48 for a batch of 16; a `window` of 1 is a ragged batch."""

    card: ClassVar[Card] = CARD
    points = ({"window": 1}, {}, {"group": 4})

    window: Annotated[int, Span(1, 64, "batches")] = 3
    group: Annotated[int, Span(1, 1024, "texts")] = 2

    def held(self, batch: int) -> int:
        return batch * self.window

    def choose(self, batch: int, lengths: Sequence[int]) -> list[int]:
        groups: dict[int, list[int]] = {}
        for row, length in enumerate(lengths):
            groups.setdefault(length, []).append(row)
        # The largest group, of equal ones the one whose first text came first.
        best = max(groups.values(), key=len)
        return (best if len(best) >= min(self.group, batch, len(lengths)) else list(range(len(lengths))))[:batch]
