"""Share a budget of parameters among layers: how many ranks each keeps, or that it stays dense.

A layer [N, K] with the singular values s of its whitened weight costs r (N + K) parameters at rank r and leaves the
relative error sum(s[r:]^2) / sum(s^2), counted once per weight; dense, it costs N K and leaves none. (On a trained
model that beat counting all layers alike at keep 0.9, 0.8 and 0.7.) Within the ranks the error is convex, so taking
the best gain per parameter first is optimal; staying dense is a jump off that curve, hence the steps are those of its
lower convex hull. What the last jump leaves over is filled rank by rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

STEP = 8
"""Ranks are multiples of this, for the kernels' sake."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Rank 0 means dense; `error` is the relative error times the layer's weights."""

    rank: int
    cost: int
    error: float


def choices(rows: int, columns: int, extra: int, energies: npt.NDArray[np.float64]) -> list[Choice]:
    """Every sensible choice for a layer, from the cheapest up; `extra` parameters come with factors (a new bias)."""
    total = float(energies.sum())
    tails = np.concatenate([np.cumsum(energies[::-1])[::-1], [0.0]]) * (rows * columns / (total or 1.0))
    out = []
    for rank in range(STEP, len(energies) + 1, STEP):
        cost = rank * (rows + columns) + extra
        if cost >= rows * columns:
            break
        out.append(Choice(rank, cost, float(tails[rank])))
    return [*out, Choice(0, rows * columns, 0.0)]


def share(layers: Sequence[Sequence[Choice]], budget: float) -> list[Choice] | None:
    """One choice per layer with the least summed error whose costs stay within `budget`; None where nothing fits."""
    spent = sum(options[0].cost for options in layers)
    if spent > budget:
        return None
    at = [0] * len(layers)
    # Gains per parameter fall along a hull, so one sort puts every layer's steps in their own order.
    steps = sorted(((-gain, i, to) for i, options in enumerate(layers) for gain, to in _hull(options)))
    stuck: set[int] = set()
    for _, i, to in steps:
        more = layers[i][to].cost - layers[i][at[i]].cost
        if i in stuck or spent + more > budget:
            stuck.add(i)
            continue
        at[i], spent = to, spent + more
    while True:
        best: tuple[float, int, int] | None = None
        for i, options in enumerate(layers):
            if at[i] + 1 < len(options):
                now, then = options[at[i]], options[at[i] + 1]
                more = then.cost - now.cost
                gain = (now.error - then.error) / max(1, more)
                if spent + more <= budget and (best is None or gain > best[0]):
                    best = (gain, i, more)
        if best is None:
            return [options[i] for options, i in zip(layers, at, strict=True)]
        at[best[1]] += 1
        spent += best[2]


def _hull(options: Sequence[Choice]) -> list[tuple[float, int]]:
    """Vertices of the lower convex hull after the first: (error saved per parameter, index)."""
    out: list[tuple[float, int]] = []
    at = 0
    while at + 1 < len(options):
        now = options[at]
        gains = [(now.error - o.error) / max(1, o.cost - now.cost) for o in options[at + 1 :]]
        # Of equal gains the farthest: straight stretches are one step.
        best = max(range(len(gains)), key=lambda j: (gains[j], j))
        at += best + 1
        out.append((gains[best], at))
    return out
