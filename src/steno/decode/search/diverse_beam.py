"""Diverse beam search: groups of beams, each of which is pulled away from what the groups before it chose.

Equation 5 of the paper with Hamming diversity: within a step the groups go in order, and a group ranks a token v by its
log-probability less `diversity` times the number of earlier groups' beams that took v in this step. One group, or a
diversity of 0, is beam search. A group ends with `width` finished texts; texts are ranked by log-probability over
length to the power `length_power`.

What differs from the paper: the penalty ranks within its step and does not stay in the beam's score, so texts of all
groups are ranked by what the model says of them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from steno.core import Card, Span

from .._law import Doubles
from ..base import Ground, Hypothesis, SearchKnob

CARD = Card(
    paper="Diverse Beam Search: Decoding Diverse Solutions from Neural Sequence Models",
    keeps="near",
    breaks=("decode.search", "decode.draft", "decode.accept"),
    caps=("fork",),
)


@dataclass(frozen=True, kw_only=True)
class DiverseBeam(SearchKnob):
    """`groups` times `width` beams run side by side, one forward for all of them a step."""

    card: ClassVar[Card] = CARD
    points = ({"groups": 1, "width": 6}, {"groups": 3, "width": 2}, {"groups": 6, "width": 1})

    groups: Annotated[int, Span(1, 64, "groups")] = 3
    width: Annotated[int, Span(1, 64, "beams")] = 2
    diversity: Annotated[float, Span(0.0, 1000.0, "nats")] = 0.5
    length_power: Annotated[float, Span(0.0, 4.0)] = 1.0

    def search(self, ground: Ground) -> list[Hypothesis]:
        session = ground.open()
        # All groups start on the one row of the prompt.
        rows = [Beam()]
        alive = [[0] for _ in range(self.groups)]
        done: list[list[Beam]] = [[] for _ in range(self.groups)]
        for _ in range(ground.limit):
            laws = ground.advance(session, [beam.tokens for beam in rows])
            grown: list[Beam] = []
            kept: list[list[int]] = []
            taken: Counter[int] = Counter()
            for group, members in enumerate(alive):
                first = len(grown)
                for beam in self._extend(rows, members, laws, taken, len(ground.ends)):
                    if beam.tokens[-1] in ground.ends:
                        done[group].append(beam)
                    elif len(grown) < first + self.width:
                        grown.append(beam)
                    if len(grown) == first + self.width:
                        break
                if len(done[group]) >= self.width:
                    del grown[first:]
                taken.update(beam.tokens[-1] for beam in grown[first:])
                kept.append(list(range(first, len(grown))))
            rows, alive = grown, kept
            if not rows:
                break
            session = session.fork([beam.row for beam in rows])
        for group, members in enumerate(alive):
            done[group] += [rows[row] for row in members]
        best = {beam.tokens: beam.score / len(beam.tokens) ** self.length_power for group in done for beam in group}
        return [Hypothesis(tokens, score) for tokens, score in sorted(best.items(), key=lambda item: -item[1])]

    def _extend(
        self, rows: "Sequence[Beam]", members: Sequence[int], laws: Sequence[Doubles], taken: Counter[int], ends: int
    ) -> "list[Beam]":
        """Continuations of a group, best first by penalised score; as many as may be needed beside end tokens."""
        count = self.width * (1 + ends)
        found: list[tuple[float, Beam]] = []
        for row in members:
            # What is penalised may fall out of the best, and as many others may move up.
            order = np.argsort(-laws[row], kind="stable")[: count + len(taken)]
            for token in order.tolist():
                score = rows[row].score + float(laws[row][token])
                beam = Beam((*rows[row].tokens, token), score, row)
                if score > -np.inf:
                    found.append((score - self.diversity * taken[token], beam))
        return [beam for _, beam in sorted(found, key=lambda item: -item[0])[:count]]


@dataclass(frozen=True, slots=True)
class Beam:
    """A text on its way, and the session's row that holds all of it but its last token."""

    tokens: tuple[int, ...] = ()
    score: float = 0.0
    row: int = 0
