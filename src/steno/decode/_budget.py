"""How much to draft: the size n that maximises E[accepted(n) + 1] / cost(1 + n).

cost(W) is measured on the session, because it is not what one would guess: it is often not even monotone (specs:
decode, finding 11). E[accepted] comes from the drafter's scores, corrected by how scores turned out so far. The choice
decides speed only: every acceptor gives the same output, or the same law, whatever was drafted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from time import perf_counter

import numpy as np

from steno.core import PAD, ROOT, Nodes, Session

from ._trim import EMPTY, best_path, depths, keep, scores
from .base import Draft

PATIENCE = 0.25
"""Seconds after which a width is measured no more often: large models pause less, and small ones are still precise."""

WIDTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class CostTable:
    """Seconds of a forward by nodes per row, for one batch size.

    Between measured widths cost is a straight line; past the widest it goes on with the last slope, never falling.

    overhead  seconds of a step beside its forward

    >>> table = CostTable({1: 1.0, 3: 2.0})
    >>> table.at(1), table.at(2), table.at(5)
    (1.0, 1.5, 3.0)
    """

    seconds: Mapping[int, float]
    overhead: float = 0.0

    def __post_init__(self) -> None:
        if 1 not in self.seconds or min(self.seconds) < 1 or min(self.seconds.values()) <= 0:
            raise ValueError(f"a cost table holds positive seconds by width, and width 1 among them: {self.seconds}")

    def at(self, width: int) -> float:
        """Seconds of a forward of `width` nodes per row."""
        known = sorted(self.seconds)
        if width in self.seconds:
            return self.seconds[width]
        if width > known[-1]:
            low, high = known[-2:] if len(known) > 1 else (known[-1], known[-1])
            slope = (self.seconds[high] - self.seconds[low]) / (high - low) if high > low else 0.0
            return self.seconds[high] + max(slope, 0.0) * (width - high)
        high = next(w for w in known if w > width)
        low = known[known.index(high) - 1]
        share = (width - low) / (high - low)
        return (1 - share) * self.seconds[low] + share * self.seconds[high]

    @staticmethod
    def measure(
        session: Session, *, rows: Sequence[int] | None = None, widest: int = 64, repeats: int = 5
    ) -> "CostTable":
        """Least seconds of forwards at 1, 2, 4, ... up to `widest` nodes in each of `rows` (default: all).

        The least, because what disturbs a forward only ever adds to it, and one bad number would steer every draft.

        A forward changes nothing (contract C1), so the session goes on as it was. Nodes are siblings where the session
        has trees, so that no row needs room for a long path; else a chain within the room of the rows.
        """
        batch = len(session.lengths)
        taking = list(range(batch)) if rows is None else list(rows)
        room = session.room()
        tree = session.caps.tree
        widest = min(widest, session.caps.max_width)
        if not tree:
            widest = min([widest, *(room[b] for b in taking)])
        seconds: dict[int, float] = {}
        for width in (w for w in WIDTHS if w <= widest):
            tokens = np.zeros((batch, width), np.int32)
            parents = np.full((batch, width), PAD, np.int32)
            parents[taking] = ROOT if tree else np.arange(-1, width - 1)
            nodes = Nodes(tokens=tokens, parents=parents)
            laps: list[float] = []
            # One unmeasured lap: buffers grow on the first forward of a width.
            while len(laps) <= repeats and (len(laps) < 2 or sum(laps) < PATIENCE):
                start = perf_counter()
                step = session.forward(nodes)
                step.argmax  # noqa: B018
                laps.append(perf_counter() - start)
            seconds[width] = max(min(laps[1:]), 1e-9)
        return CostTable(seconds)


BINS = 16
DEPTHS = 4

PRIOR = 2.0
"""Observations that the claim of a score, or the depth above, is worth."""

FADE = 0.95
"""What a count keeps per step: a memory of about 20 steps, because text changes its ways quickly."""


class _Record:
    """How one source's tokens turned out, by the conditional probability it claimed and by depth.

    Counts fade with every step, so the estimate drifts back to the claim, and what was given up is tried again. Fading
    is done by letting new counts weigh more: `weight` grows and everything is relative to it.
    """

    def __init__(self) -> None:
        self.weight = 1.0
        self.hits = [[0.0] * BINS for _ in range(DEPTHS)]
        self.tries = [[0.0] * BINS for _ in range(DEPTHS)]

    def fade(self) -> None:
        self.weight /= FADE
        if self.weight > 1e100:
            for table in (self.hits, self.tries):
                table[:] = [[x / self.weight for x in row] for row in table]
            self.weight = 1.0

    def hazard(self, depth: int, bin: int) -> float:
        """P(token accepted | parent accepted); each depth leans on the one above, the first on the claim."""
        prior = PRIOR * self.weight
        out = (bin + 0.5) / BINS
        for d in range(min(depth, DEPTHS - 1) + 1):
            out = (self.hits[d][bin] + prior * out) / (self.tries[d][bin] + prior)
        return out


class Budget:
    """Cuts the drafts of one step, and learns from what became of them.

    overhead  seconds of a step beside forward and drafting: saved with every step that drafts make needless
    making    seconds of making the drafts of a step
    worth     whether the last choice pays for making its drafts as well; where not, drafting may rest for some steps
    confirm  branching drafts cost a second forward, of their accepted path (a session whose trees are not exact)
    """

    def __init__(self, costs: CostTable, widest: int, *, confirm: bool = False) -> None:
        self.costs = [0.0, *(costs.at(w) for w in range(1, widest + 1))]
        self.overhead = costs.overhead
        self.making = 0.0
        self.worth = True
        self.confirm = confirm
        self._records: dict[str, _Record] = {}

    def choose(self, drafts: Sequence[Draft]) -> list[Draft]:
        """One draft per row, cut. Rows share the forward, so they are cut to one width.

        Sampled drafts (with laws) are left alone: a cut that looks at what was sampled bends the law.
        """
        if any(draft.laws is not None for draft in drafts):
            return list(drafts)
        expected, seconds, cut = self._cut(drafts)
        # Also where the whole tree was declined: a path of it costs one forward.
        if self.confirm and any(draft.branches for draft in drafts):
            chains = [keep(draft, best_path(draft)) if draft.branches else draft for draft in drafts]
            other = self._cut(chains)
            if other[0] / other[1] >= expected / seconds:
                expected, seconds, cut = other
        self.worth = expected / (seconds + self.making) > len(drafts) / (self.costs[1] + self.overhead)
        return cut

    def _cut(self, drafts: Sequence[Draft]) -> tuple[float, float, list[Draft]]:
        """The common width with the most tokens per second: (tokens expected, seconds, the drafts cut to it)."""
        ranked = [self._rank(draft) for draft in drafts]
        again = self.confirm and any(draft.branches for draft in drafts)
        gains = ranked[0][1] if len(ranked) == 1 else map(sum, zip_longest(*[g for _, g in ranked], fillvalue=0.0))
        expected = float(len(drafts))
        size, tokens, seconds = 0, expected, self.costs[1] + self.overhead
        rate = tokens / seconds
        floor = max(draft.kept for draft in drafts)
        for n, gain in enumerate(gains, 1):
            expected += gain
            cost = self.costs[n + 1] + self.overhead
            if again:
                # The accepted path runs once more: about as many nodes as tokens are expected of a row.
                cost += self.costs[min(n + 1, round(expected / len(drafts)))]
            if n <= floor or expected / cost > rate:
                size, tokens, seconds, rate = n, expected, cost, expected / cost
        return tokens, seconds, [_first(draft, order[:size]) for draft, (order, _) in zip(drafts, ranked, strict=True)]

    def watch(self, overhead: float, making: float) -> None:
        """What a step took. Follows the medians, which a pause of the machine does not move."""
        self.overhead = _toward(self.overhead, overhead)
        self.making = _toward(self.making, making)

    def learn(self, draft: Draft, path: Sequence[int]) -> None:
        """The tokens `path` of `draft` were accepted."""
        record = self._records.get(draft.source)
        if record is None:
            record = self._records[draft.source] = _Record()
        record.fade()
        taken = {ROOT, *path}
        weight = record.weight
        last = DEPTHS - 1
        for i, (parent, depth, bin) in enumerate(
            zip(draft.parents, depths(draft.parents), _bins(scores(draft), draft.parents), strict=True)
        ):
            if parent in taken:
                d = min(depth, last)
                record.tries[d][bin] += weight
                if i in taken:
                    record.hits[d][bin] += weight

    def _rank(self, draft: Draft) -> "tuple[range | list[int], list[float]]":
        """Nodes in the order in which they are worth having, and the probability that each is accepted."""
        if not draft.tokens:
            return range(0), []
        record = self._records.get(draft.source)
        if record is None:
            record = self._records[draft.source] = _Record()
        known: dict[tuple[int, int], float] = {}
        reach: list[float] = []
        for parent, depth, bin in zip(
            draft.parents, depths(draft.parents), _bins(scores(draft), draft.parents), strict=True
        ):
            cell = (min(depth, DEPTHS - 1), bin)
            hazard = known.get(cell)
            if hazard is None:
                hazard = known[cell] = record.hazard(*cell)
            reach.append(hazard if parent < 0 else hazard * reach[parent])
        if not draft.branches:
            return range(len(reach)), reach
        order = sorted(range(len(reach)), key=lambda i: (i >= draft.kept, i if i < draft.kept else -reach[i]))
        return order, [reach[i] for i in order]


def _toward(known: float, seen: float) -> float:
    """A running median: a step up or down by what was seen."""
    return known * (1.05 if seen > known else 0.95) if known else seen


def _first(draft: Draft, chosen: "range | list[int]") -> Draft:
    if len(chosen) == len(draft.tokens):
        return draft
    return keep(draft, chosen if isinstance(chosen, range) else sorted(chosen)) if chosen else EMPTY


@lru_cache(maxsize=1024)
def _bins(claimed: tuple[float, ...], parents: tuple[int, ...]) -> tuple[int, ...]:
    """The bin of each token's claim: its score over its parent's."""
    out: list[int] = []
    for score, parent in zip(claimed, parents, strict=True):
        above = claimed[parent] if parent >= 0 else 1.0
        share = score / above if above > 0.0 else 0.0
        out.append(BINS - 1 if share >= 1.0 else int(share * BINS) if share > 0.0 else 0)
    return tuple(out)
