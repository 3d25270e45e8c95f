"""Arms of a search and the heats they run in: laps, paired statistics, and the records made of them.

Comparisons are made within a heat only, where every arm ran beside the baseline on the same prompt in the same minute.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from statistics import fmean, median, stdev

from steno.core import Plan
from steno.measure import Bytes, Fidelity, Outcome, Peer, PromptRow, Speed, Trial
from steno.measure.fidelity import divergence
from steno.measure.speed import ratio_interval

from .journal import Lap
from .lab import Unit
from .space import label

# Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom; the normal one beyond.
T95 = (
    12.71,
    4.30,
    3.18,
    2.78,
    2.57,
    2.45,
    2.36,
    2.31,
    2.26,
    2.23,
    2.20,
    2.18,
    2.16,
    2.14,
    2.13,
    2.12,
    2.11,
    2.10,
    2.09,
)

Laps = dict[int, list[Lap]]
"""Laps by unit, in the order of rounds."""


class Arm:
    """A plan under trial, or the other engine (`plan` None). Alive until it has an outcome."""

    def __init__(self, plan: Plan | None, name: str = "") -> None:
        self.plan = plan
        self.label = label(plan) if plan is not None else name
        text = plan.to_toml() if plan is not None else f"peer {name}"
        self.key = blake2b(text.encode(), digest_size=6).hexdigest()
        self.heat: Heat | None = None
        self.outcome: Outcome | None = None
        self.reason = ""
        self.fidelity: Fidelity | None = None
        self.bytes: Bytes | None = None
        self.spent = 0.0

    @property
    def alive(self) -> bool:
        return self.outcome is None

    def out(self, outcome: Outcome, reason: str) -> None:
        """Take it out of the race; the first reason stands."""
        if self.outcome is None:
            self.outcome, self.reason = outcome, reason

    @property
    def ratio(self) -> float:
        """Speed over the baseline in its last heat; 0 before the first."""
        return self.heat.ratio(self) if self.heat else 0.0

    @property
    def measured(self) -> int:
        """Units it ran in its last heat."""
        return len(self.heat.laps[self.key]) if self.heat else 0


@dataclass
class Heat:
    """One race: laps of every arm, by its key, beside those of the baseline."""

    name: str
    base: Arm
    units: Sequence[Unit]
    laps: dict[str, Laps] = field(default_factory=dict[str, Laps])

    def add(self, unit: int, laps: Mapping[Arm, Lap]) -> None:
        """A whole round over a unit."""
        for arm, lap in laps.items():
            self.laps.setdefault(arm.key, {}).setdefault(unit, []).append(lap)
            arm.heat = self

    def of(self, arm: Arm) -> Laps:
        return self.laps.get(arm.key, {})

    def rates(self, arm: Arm) -> dict[int, float]:
        """Tokens per second by unit: the median of its rounds."""
        return {unit: median(lap.per_s for lap in laps) for unit, laps in self.of(arm).items()}

    def ratio(self, arm: Arm) -> float:
        """Geometric mean over prompts of the speed over the baseline's."""
        return math.exp(fmean(log_ratios(self.rates(arm), self.rates(self.base)) or [-math.inf]))

    def rows(self, arm: Arm) -> Iterator[PromptRow]:
        """Every prompt the arm ran, in order of units."""
        for unit, own in sorted(self.of(arm).items()):
            base = self.of(self.base)[unit]
            base_per_s, per_s = median(lap.per_s for lap in base), median(lap.per_s for lap in own)
            for task, one, two in zip(self.units[unit], base[-1].outs, own[-1].outs, strict=True):
                at = divergence(one.tokens, two.tokens)
                yield PromptRow(
                    name=task.name,
                    category=task.category,
                    prompt_tokens=len(task.request.prompt),
                    tokens=len(two.tokens),
                    base_tokens=len(one.tokens),
                    base_per_s=base_per_s,
                    per_s=per_s,
                    identical=at is None,
                    divergence=at,
                    finish=two.finish,
                    passes=two.passes,
                    drafted=two.drafted,
                    accepted=two.accepted,
                    histogram=two.histogram,
                    spans=two.spans,
                )

    def speed(self, arm: Arm, seed: int) -> Speed | None:
        """Totals over prompts, each prompt at the median of its rounds; None where it ran nothing."""
        units = sorted(self.of(arm))
        if not units:
            return None
        own, base = ([self.of(a)[u] for u in units] for a in (arm, self.base))
        low, high = ratio_interval(
            [[lap.seconds for lap in rounds] for rounds in base],
            [rounds[0].tokens for rounds in base],
            [[lap.seconds for lap in rounds] for rounds in own],
            [rounds[0].tokens for rounds in own],
            seed,
        )
        tasks = [task for unit in units for task in self.units[unit]]
        base_rate = _rate(base)
        return Speed(
            name=arm.label,
            prompts=len(tasks),
            prompt_tokens=sum(len(task.request.prompt) for task in tasks),
            tokens=sum(rounds[0].tokens for rounds in own),
            decoded=sum(rounds[0].decoded for rounds in own),
            prefill_s=sum(median(lap.prefill_s for lap in rounds) for rounds in own),
            decode_s=sum(median(lap.decode_s for lap in rounds) for rounds in own),
            ratio=_rate(own) / base_rate if base_rate else 0.0,
            ratio_low=low,
            ratio_high=high,
            repeats=min(map(len, own)),
        )

    def texts(self) -> list[tuple[int, ...]]:
        """Prompt and baseline output of every prompt."""
        return [
            (*task.request.prompt, *out.tokens)
            for unit, laps in sorted(self.of(self.base).items())
            for task, out in zip(self.units[unit], laps[0].outs, strict=True)
        ]


def trial(arm: Arm, seed: int) -> Trial:
    """The record of an arm, from its last heat."""
    if arm.plan is None:
        raise ValueError("the peer is no trial")
    return Trial(
        label=arm.label,
        plan=arm.plan.to_toml(),
        keeps=arm.plan.keeps,
        outcome=arm.outcome or Outcome.KEPT,
        reason=arm.reason,
        speed=arm.heat.speed(arm, seed) if arm.heat else None,
        fidelity=arm.fidelity,
        bytes=arm.bytes,
        rows=tuple(arm.heat.rows(arm)) if arm.heat else (),
        seconds=arm.spent,
    )


def peer(arm: Arm, seed: int, version: str) -> Peer | None:
    """The record of the other engine, None where it was not measured."""
    speed = arm.heat.speed(arm, seed) if arm.heat else None
    if arm.heat is None or speed is None:
        return None
    rows = list(arm.heat.rows(arm))
    same = sum(row.identical is True for row in rows)
    return Peer(name=arm.label, version=version, speed=speed, identical=same, compared=len(rows))


def behind(leader: Mapping[int, float], other: Mapping[int, float]) -> float:
    """Lower end of the 95 % interval of the mean log-ratio leader / other over the units both ran; -inf below three.

    >>> behind({0: 2.0, 1: 4.0, 2: 6.0}, {0: 1.0, 1: 2.0, 2: 3.0}) > 0.6
    True
    """
    pairs = log_ratios(leader, other)
    if len(pairs) < 3:
        return -math.inf
    quantile = T95[len(pairs) - 2] if len(pairs) - 2 < len(T95) else 1.96
    return fmean(pairs) - quantile * stdev(pairs) / math.sqrt(len(pairs))


def log_ratios(one: Mapping[int, float], two: Mapping[int, float]) -> list[float]:
    """log(one / two) over the units both ran with some speed."""
    return [math.log(one[u] / two[u]) for u in one if one[u] > 0 and two.get(u, 0.0) > 0]


def _rate(laps: Sequence[Sequence[Lap]]) -> float:
    seconds = sum(median(lap.seconds for lap in rounds) for rounds in laps)
    return sum(rounds[0].tokens for rounds in laps) / seconds if seconds > 0 else 0.0
