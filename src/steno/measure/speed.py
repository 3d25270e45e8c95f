"""Racing: several arms over the same prompts, interleaved, so that drift of the machine meets all of them alike.

Every arm is asked for the same ids and counted by the ids it emits. Per prompt the arms run in a random order, fixed by
the seed and new in every round; passes are timed after a warm-up. A prompt's time is the median of its passes.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from steno.core import Model, Plan

from .base import Speed
from .machine import Clock

if TYPE_CHECKING:
    from steno.decode import CostTable
    from steno.decode.base import Completion

Doubles = npt.NDArray[np.float64]

DRAWS = 2000
"""Bootstrap draws behind an interval."""

ROUNDS = 50
"""Most timed passes per prompt, however short they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One pass of one arm over one prompt.

    decoded     ids whose making lies in `decode_s`: all of them, or one fewer where prefill yields the first
    completion  what steno says about the pass, for arms that are steno's
    """

    tokens: tuple[int, ...]
    prefill_s: float
    decode_s: float
    decoded: int
    completion: "Completion | None" = None

    @property
    def seconds(self) -> float:
        return self.prefill_s + self.decode_s


@dataclass(frozen=True, slots=True)
class Arm:
    """Something that continues ids: `run(prompt ids, max_tokens)`."""

    name: str
    run: Callable[[Sequence[int], int], Timing]


@dataclass(frozen=True, slots=True)
class Race:
    """What came of a race. `passes[arm][prompt]` holds the timed passes in order."""

    speeds: tuple[Speed, ...]
    passes: tuple[tuple[tuple[Timing, ...], ...], ...] = field(repr=False)

    def tokens(self, arm: int, prompt: int) -> tuple[int, ...]:
        """The ids an arm emitted for a prompt."""
        return self.passes[arm][prompt][0].tokens

    def per_s(self, arm: int, prompt: int) -> float:
        """Tokens per second of an arm on a prompt, prefill included."""
        seconds = median(t.seconds for t in self.passes[arm][prompt])
        return len(self.tokens(arm, prompt)) / seconds if seconds > 0 else 0.0


def race(
    arms: Sequence[Arm],
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    repeats: int = 3,
    min_seconds: float = 0.0,
    seed: int = 0,
    warm: int = 1,
    tick: Callable[[], None] | None = None,
) -> Race:
    """Race `arms` over `prompts`; every ratio is against the first arm.

    A prompt gets `repeats` rounds, and more until each arm has run `min_seconds` on it. The first `warm` rounds over
    the first prompt are not counted. `tick` is called after every pass.
    """
    if not arms or not prompts:
        raise ValueError("a race needs at least one arm and one prompt")
    order = random.Random(seed)
    for _ in range(warm):
        for arm in arms:
            arm.run(prompts[0], max_tokens)
            _tick(tick)
    start = Clock.now()
    passes: list[list[list[Timing]]] = [[[] for _ in prompts] for _ in arms]
    for p, prompt in enumerate(prompts):
        for done in range(ROUNDS):
            if done >= repeats and min(sum(t.seconds for t in lane[p]) for lane in passes) >= min_seconds:
                break
            for a in order.sample(range(len(arms)), len(arms)):
                passes[a][p].append(arms[a].run(prompt, max_tokens))
                _tick(tick)
    foreign = Clock.now().foreign(start)
    frozen = tuple(tuple(tuple(lap) for lap in lane) for lane in passes)
    speeds = tuple(
        _speed(arm.name, lane, frozen[0], prompts, foreign=foreign, seed=seed)
        for arm, lane in zip(arms, frozen, strict=True)
    )
    return Race(speeds, frozen)


def plan_arm(
    name: str,
    model: Model,
    plan: Plan = Plan(),
    *,
    capacity: int | None = None,
    costs: "CostTable | None" = None,
    seed: int = 0,
    ignore_eos: bool = False,
) -> Arm:
    """steno itself: `plan` on `model`, one row."""
    from steno.decode import generate
    from steno.decode.base import Request

    def run(prompt: Sequence[int], max_tokens: int) -> Timing:
        request = Request(number=0, prompt=tuple(prompt), max_tokens=max_tokens, seed=seed, ignore_eos=ignore_eos)
        start = time.perf_counter()
        (done,) = generate(model, [request], plan, batch=1, costs=costs, capacity=capacity)
        whole = time.perf_counter() - start
        decode = min(whole, done.stats.decode_s)
        return Timing(
            tokens=done.tokens,
            # All that is not decoding counts as prefill, opening the session included: a peer pays for its own, too.
            prefill_s=whole - decode,
            decode_s=decode,
            decoded=len(done.tokens),
            completion=done,
        )

    return Arm(name, run)


Laps = Sequence[Sequence[Timing]]


def _speed(
    name: str, laps: Laps, base: Laps, prompts: Sequence[Sequence[int]], *, foreign: float | None, seed: int
) -> Speed:
    tokens = [len(lap[0].tokens) for lap in laps]
    low, high = ratio_interval(_times(base), _counts(base), _times(laps), _counts(laps), seed)
    return Speed(
        name=name,
        prompts=len(prompts),
        prompt_tokens=sum(map(len, prompts)),
        tokens=sum(tokens),
        decoded=sum(lap[0].decoded for lap in laps),
        prefill_s=sum(median(t.prefill_s for t in lap) for lap in laps),
        decode_s=sum(median(t.decode_s for t in lap) for lap in laps),
        ratio=_ratio(base, laps),
        ratio_low=low,
        ratio_high=high,
        repeats=min(map(len, laps)),
        foreign=foreign,
    )


def _rate(laps: Laps) -> float:
    seconds = sum(median(t.prefill_s for t in lap) + median(t.decode_s for t in lap) for lap in laps)
    return sum(len(lap[0].tokens) for lap in laps) / seconds if seconds > 0 else 0.0


def _ratio(base: Laps, laps: Laps) -> float:
    whole = _rate(base)
    return _rate(laps) / whole if whole else 0.0


def _times(laps: Laps) -> list[list[float]]:
    return [[t.seconds for t in lap] for lap in laps]


def _counts(laps: Laps) -> list[int]:
    return [len(lap[0].tokens) for lap in laps]


def ratio_interval(
    base: Sequence[Sequence[float]],
    base_counts: Sequence[int],
    times: Sequence[Sequence[float]],
    counts: Sequence[int],
    seed: int = 0,
) -> tuple[float, float]:
    """95 % interval of (counts / times) / (base_counts / base), each a sum over prompts of medians over passes.

    Paired bootstrap: a draw takes the same prompts for both arms, and in each prompt the same rounds.
    """
    rng = np.random.default_rng(seed)
    num = len(times)
    of_base, of_arm = np.empty((DRAWS, num)), np.empty((DRAWS, num))
    for p in range(num):
        rounds = rng.integers(0, len(times[p]), (DRAWS, len(times[p])))
        of_base[:, p] = np.median(np.asarray(base[p])[rounds], axis=1)
        of_arm[:, p] = np.median(np.asarray(times[p])[rounds], axis=1)
    picks = rng.integers(0, num, (DRAWS, num))

    def total(values: Doubles) -> Doubles:
        return np.take_along_axis(values, picks, axis=1).sum(axis=1)

    def count(values: Sequence[int]) -> Doubles:
        return np.asarray(values, np.float64)[picks].sum(axis=1)

    above = count(counts) * total(of_base)
    below = count(base_counts) * total(of_arm)
    ratios = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(low), float(high)


def _tick(tick: Callable[[], None] | None) -> None:
    if tick:
        tick()
