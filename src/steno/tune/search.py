"""The search for the fastest plan that keeps what was asked for.

Three stages, all paired: every arm takes its turn on the same prompt beside the baseline, in an order that the seed
fixes.

    screen   candidates at their defaults race on 2, 4, 8, ... prompts; after each rung, arms go whose paired log-ratio
             to the leader has its 95 % interval below zero, and then the slower half
    refine   the leader races its own neighbours (one field, one step) until none is better
    final    the best few, the baseline and the peer take turns on every prompt, round after round while time is left

Whoever promises ids and gives others is out at once, and is reported. All is deterministic but the clock, and the
clock's readings are in the journal: resuming replays them.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TypeVar

from steno.core import Keeps, Key, Plan
from steno.core.errors import StenoError
from steno.measure import Bytes, Fidelity, Outcome, Peer, Trial
from steno.measure.fidelity import divergence

from .arms import Arm, Heat, behind, peer, trial
from .journal import Journal, Lap
from .lab import Lab, Unit
from .space import neighbours, seeds

FINALISTS = 3
MOST_ROUNDS = 5
MOST_REFINED = 6
FINAL_SHARE = 0.5
"""At most this share of the time is kept back for the final."""

WARM_TOKENS = 16
"""Tokens of a warm-up pass: a cold engine must not eat the time of the search."""

OVERTIME = 1.25
"""How far the first round of the final may run over the time: a proof on every prompt is worth a little patience."""

UNTRIED = "not measured: the time ran out before its turn"

Record = TypeVar("Record", Lap, Fidelity, Bytes)


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What is asked for.

    seconds    for the whole search
    max_kl     mean KL to the baseline in nats per token
    max_bytes  weights and cache together
    """

    keep: Keeps
    seconds: float
    max_kl: float | None = None
    max_bytes: int | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a search stands. `ratio` is the leader's speed over the baseline, `left_s` what remains of the time."""

    stage: str
    trials: int
    alive: int
    leader: str
    ratio: float
    left_s: float


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search found. `best` indexes `trials`; None where nothing beat the baseline."""

    num_prompts: int
    baseline: Trial
    trials: tuple[Trial, ...]
    best: int | None
    peer: Peer | None
    seconds: float
    notes: tuple[str, ...]


class OutOfTime(Exception):
    """The time for a stage is used up."""


@dataclass(kw_only=True)
class Search:
    """One search. `units` are the prompts, each a group that runs together.

    base  knobs that every candidate carries; the baseline carries those of them that say what is asked for
    """

    lab: Lab
    journal: Journal
    units: Sequence[Unit]
    base: Plan
    goal: Goal
    backend: str
    watch: Callable[[Progress], None] = lambda progress: None
    used: float = field(default=0.0, init=False)
    notes: list[str] = field(default_factory=list[str], init=False)
    arms: list[Arm] = field(default_factory=list[Arm], init=False)

    def __post_init__(self) -> None:
        self.units = spread(self.units, self.goal.seed)
        self.baseline = Arm(self.base.task())
        self.peer = Arm(None, self.lab.peer) if self.lab.peer else None
        self.stage = "warm-up"

    def run(self) -> Found:
        """Search, within the time. Raises StenoError where plain decoding itself fails."""
        limit = self.goal.seconds - self._warm_up()
        fixed = [self.base] if self.base != self.base.task() else []
        plans = [*fixed, *seeds(self.base, self.backend, self.goal.keep)]
        leader = self._race("screen", [Arm(plan) for plan in plans], limit)
        for turn in range(MOST_REFINED):
            seen = {arm.plan for arm in self.arms}
            near = neighbours(leader.plan, self.base, self.backend, self.goal.keep) if leader and leader.plan else []
            fresh = [Arm(plan) for plan in near if plan not in seen]
            if not fresh or self.used >= limit:
                break
            better = self._race(f"refine {turn + 1}", fresh, limit, leader)
            if better is None or better is leader:
                break
            leader = better
        heat = self._final(self._finalists())
        return self._found(heat)

    def _warm_up(self) -> float:
        """A short uncounted pass of the baseline and the peer; returns the seconds to keep back for the final."""
        unit = self.units[0]
        short = tuple(
            replace(task, request=replace(task.request, max_tokens=min(WARM_TOKENS, task.request.max_tokens)))
            for task in unit
        )
        first = self._take("warm-up/base", Lap, lambda: self.lab.run(self.base.task(), short))
        if first.error:
            raise StenoError(f"plain decoding fails on '{unit[0].name}': {first.error}")
        cost = (1 + FINALISTS) * first.seconds
        if self.peer:
            cost += self._take("warm-up/peer", Lap, lambda: self.lab.run_peer(short)).seconds
        whole = sum(task.request.max_tokens for every in self.units for task in every)
        return min(FINAL_SHARE * self.goal.seconds, cost * whole / sum(task.request.max_tokens for task in short))

    def _race(self, name: str, fresh: list[Arm], limit: float, leader: Arm | None = None) -> Arm | None:
        """Race fresh arms, and the leader so far, by successive halving. Returns the fastest that is left."""
        self.stage = name
        self.arms += fresh
        for arm in fresh:
            if self.used < limit:
                self._admit(arm)
            else:
                arm.out(Outcome.SLOWER, UNTRIED)
        racing = [*([leader] if leader else []), *fresh]
        heat = Heat(name, self.baseline, self.units)
        done = 0
        try:
            while done < len(self.units):
                alive = [arm for arm in racing if arm.alive]
                if not alive or (len(alive) == 1 and done):
                    break
                target = min(len(self.units), max(2, 2 * done))
                for unit in range(done, target):
                    self._round(heat, unit, 0, [arm for arm in alive if arm.alive], limit)
                done = target
                self._cull(heat, [arm for arm in alive if arm.alive], halve=done < len(self.units))
        except OutOfTime:
            pass
        ran = [arm for arm in racing if arm.alive and arm.heat is heat]
        return max(ran, key=heat.ratio, default=leader if leader and leader.alive else None)

    def _cull(self, heat: Heat, alive: list[Arm], *, halve: bool) -> None:
        """Drop the confidently slower, then the slower half; as many as go to the final always stay."""
        alive.sort(key=lambda arm: -heat.ratio(arm))
        for arm in alive[1:]:
            if behind(heat.rates(alive[0]), heat.rates(arm)) > 0:
                arm.out(Outcome.SLOWER, f"its interval lay below that of {alive[0].label} after {arm.measured} prompts")
        left = [arm for arm in alive if arm.alive]
        for arm in left[max(FINALISTS, math.ceil(len(left) / 2)) :] if halve else []:
            arm.out(Outcome.SLOWER, f"in the slower half after {arm.measured} prompts")

    def _finalists(self) -> list[Arm]:
        for arm in self.arms:
            if arm.heat is None:
                arm.out(Outcome.SLOWER, UNTRIED)
        ranked = sorted((arm for arm in self.arms if arm.alive), key=lambda arm: -arm.ratio)
        for arm in ranked[FINALISTS:]:
            arm.out(Outcome.SLOWER, f"behind the {FINALISTS} finalists")
        if self.arms and not any(arm.heat for arm in self.arms):
            self.notes.append("The time ran out before any plan was measured; give more --minutes.")
        return ranked[:FINALISTS]

    def _final(self, finalists: list[Arm]) -> Heat:
        """Rounds over every prompt. What was measured before does not count here: the race is run anew."""
        self.stage = "final"
        heat = Heat("final", self.baseline, self.units)
        others = [self.peer] if self.peer else []
        try:
            for turn in range(MOST_ROUNDS):
                for unit in range(len(self.units)):
                    limit = math.inf if turn == unit == 0 else self.goal.seconds * (1.0 if turn else OVERTIME)
                    self._round(heat, unit, turn, [*(arm for arm in finalists if arm.alive), *others], limit)
        except OutOfTime:
            pass
        count = len(heat.of(self.baseline))
        if count < len(self.units):
            self.notes.append(
                f"The time allowed for {count} of {len(self.units)} prompts in the final; the rest is not proved. "
                "Give more --minutes for all."
            )
        return heat

    def _round(self, heat: Heat, unit: int, turn: int, arms: list[Arm], limit: float) -> None:
        """One pass of the baseline and every arm over a unit, counted whole or not at all: pairs stay pairs.

        Raises OutOfTime once `limit` seconds are used.
        """
        order = [self.baseline, *arms]
        random.Random(Key(self.goal.seed, unit, turn, f"order {heat.name}").bits(64)).shuffle(order)
        laps: dict[Arm, Lap] = {}
        for arm in order:
            if self.used >= limit:
                raise OutOfTime
            lap = self._lap(f"{heat.name}/{turn}/{unit}", arm, unit)
            if not lap.error:
                laps[arm] = lap
            elif arm is self.baseline:
                raise StenoError(f"plain decoding fails on '{self.units[unit][0].name}': {lap.error}")
            else:
                arm.out(Outcome.FAILED, lap.error)
        heat.add(unit, laps)
        for arm, lap in laps.items():
            self._compare(arm, unit, laps[self.baseline], lap)
        self._tell()

    def _compare(self, arm: Arm, unit: int, base: Lap, lap: Lap) -> None:
        """Whoever promises ids is held to them, prompt by prompt."""
        if arm.plan is None or not arm.plan.keeps.covers(Keeps.TOKENS):
            return
        for task, one, two in zip(self.units[unit], base.outs, lap.outs, strict=True):
            at = divergence(one.tokens, two.tokens)
            if at is not None:
                keeps = arm.plan.keeps.value
                arm.out(Outcome.CHANGED, f"promises {keeps}, and differs from plain on '{task.name}' at token {at}")

    def _admit(self, arm: Arm) -> None:
        """Hold an arm to the limits before it races."""
        if arm.plan is None:
            return
        prompts = [task.request.prompt for unit in self.units for task in unit]
        try:
            if self.goal.max_bytes is not None:
                arm.bytes = self._bytes(arm.plan, max(prompts, key=len))
                if arm.bytes.total > self.goal.max_bytes:
                    held = f"{arm.bytes.total:,} bytes of weights and cache, and {self.goal.max_bytes:,} are allowed"
                    arm.out(Outcome.BREACH, held)
            if self.goal.max_kl is not None and not arm.plan.keeps.covers(Keeps.LAW):
                self._hold_to_kl(arm, arm.plan, "prompts", prompts)
        except StenoError as error:
            arm.out(Outcome.FAILED, str(error))

    def _hold_to_kl(self, arm: Arm, plan: Plan, name: str, texts: Sequence[Sequence[int]]) -> None:
        arm.fidelity = self._take(
            f"kl of {name}/{arm.key}", Fidelity, lambda: self.lab.fidelity(self.base.task(), plan, texts)
        )
        if self.goal.max_kl is not None and arm.fidelity.kl_mean > self.goal.max_kl:
            found = f"KL {arm.fidelity.kl_mean:.3g} nats per token on the {name}, and {self.goal.max_kl:g} is allowed"
            arm.out(Outcome.BREACH, found)

    def _bytes(self, plan: Plan, ids: Sequence[int]) -> Bytes:
        return self._take(f"bytes/{len(ids)}/{Arm(plan).key}", Bytes, lambda: self.lab.bytes(plan, ids))

    def _lap(self, where: str, arm: Arm, unit: int) -> Lap:
        before = self.used
        plan = arm.plan
        prompts = self.units[unit]
        measure = (lambda: self.lab.run(plan, prompts)) if plan is not None else (lambda: self.lab.run_peer(prompts))
        lap = self._take(f"{where}/{arm.key}", Lap, measure)
        arm.spent += self.used - before
        return lap

    def _take(self, key: str, kind: type[Record], measure: Callable[[], Record]) -> Record:
        """The measurement in the journal, or a new one that is put there first; its cost counts against the time."""
        known = self.journal.get(key, kind)
        if known is None:
            start = perf_counter()
            record = measure()
            seconds = record.seconds if isinstance(record, Lap) else 0.0
            known = (record, round(max(perf_counter() - start, seconds), 6))
            self.journal.put(key, *known)
        self.used += known[1]
        return known[0]

    def _tell(self) -> None:
        alive = [arm for arm in self.arms if arm.alive]
        leader = max(alive, key=lambda arm: arm.ratio, default=None)
        self.watch(
            Progress(
                stage=self.stage,
                trials=len(self.arms),
                alive=len(alive),
                leader=leader.label if leader else "",
                ratio=leader.ratio if leader else 1.0,
                left_s=max(0.0, self.goal.seconds - self.used),
            )
        )

    def _found(self, heat: Heat) -> Found:
        texts = heat.texts()
        for arm in self.arms:
            if arm.alive and arm.plan is not None and not arm.plan.keeps.covers(Keeps.LAW):
                try:
                    self._hold_to_kl(arm, arm.plan, "prompts and their output", texts)
                except StenoError as error:
                    arm.out(Outcome.FAILED, str(error))
        for arm in (self.baseline, *self.arms):
            if arm.alive and arm.plan is not None:
                arm.bytes = self._bytes(arm.plan, max(texts, key=len))
        trials = [trial(arm, self.goal.seed) for arm in self.arms]
        alive = [i for i, arm in enumerate(self.arms) if arm.alive]
        best = max(alive, key=lambda i: _ratio(trials[i]), default=None)
        if best is not None and not _beats(trials[best]):
            best = None
        for i in alive:
            reason = "within the limits, not the fastest" if best is not None else "not faster than plain beyond doubt"
            if i == best:
                reason = "the fastest that keeps what was asked for"
            outcome = Outcome.BEST if i == best else Outcome.KEPT
            trials[i] = replace(trials[i], outcome=outcome, reason=reason)
        changed = sum(t.outcome is Outcome.CHANGED for t in trials)
        if changed:
            self.notes.append(f"{changed} of {len(trials)} plans gave other ids than they promise, and are left out.")
        return Found(
            num_prompts=sum(map(len, self.units)),
            baseline=trial(self.baseline, self.goal.seed),
            trials=tuple(trials),
            best=best,
            peer=peer(self.peer, self.goal.seed, self.lab.peer_version) if self.peer else None,
            seconds=self.used,
            notes=tuple(self.notes),
        )


def spread(units: Sequence[Unit], seed: int) -> list[Unit]:
    """Units in an order that takes categories in turns, shuffled within each, so that the first few stand for all."""
    groups: dict[str, list[Unit]] = {}
    for unit in units:
        groups.setdefault(unit[0].category, []).append(unit)
    for number, name in enumerate(sorted(groups)):
        random.Random(Key(seed, number, 0, "prompts").bits(64)).shuffle(groups[name])
    out: list[Unit] = []
    while any(groups.values()):
        out += [groups[name].pop() for name in sorted(groups) if groups[name]]
    return out


def _ratio(found: Trial) -> float:
    return found.speed.ratio if found.speed else 0.0


def _beats(found: Trial) -> bool:
    """Faster than plain decoding beyond doubt: the whole interval lies above one."""
    return found.speed is not None and found.speed.ratio_low > 1.0
