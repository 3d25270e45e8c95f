"""Races on scripted clocks: order, counting, medians, intervals. No test here looks at real time."""

import pytest

from steno.core import Plan, make_knob
from steno.decode import CostTable
from steno.measure.speed import Arm, Timing, plan_arm, race, ratio_interval
from steno.models.table import TableModel


def scripted(name, log, seconds, tokens=10, prefill=1.0):
    """An arm that says how long it took: seconds(prompt, nth pass on it) -> decode seconds."""
    count = {}

    def run(prompt, max_tokens):
        key = tuple(prompt)
        count[key] = count.get(key, -1) + 1
        log.append((name, key))
        made = tuple(range(min(tokens, max_tokens)))
        return Timing(tokens=made, prefill_s=prefill, decode_s=seconds(key, count[key]), decoded=len(made))

    return Arm(name, run)


PROMPTS = [[1, 2, 3], [4], [5, 6]]


def test_totals_are_sums_of_medians():
    log = []
    # One wild pass per prompt must not count; the warm-up pass (number 0 on the first prompt) is not timed.
    slow = scripted("slow", log, lambda key, n: [100.0, 2.0, 3.0, 4.0][n] if key == (1, 2, 3) else [1.0, 3.0, 50.0][n])
    fast = scripted("fast", log, lambda key, n: 0.5, prefill=0.5)
    got = race([slow, fast], PROMPTS, max_tokens=8)
    one, two = got.speeds
    assert (one.prompts, one.prompt_tokens, one.tokens, one.decoded, one.repeats) == (3, 6, 24, 24, 3)
    assert one.prefill_s == 3.0
    assert one.decode_s == 3.0 + 3.0 + 3.0
    assert one.tokens_per_s == pytest.approx(24 / 12)
    assert (one.ratio, one.ratio_low, one.ratio_high) == (1, 1, 1)
    assert two.ratio == pytest.approx(12 / 3)
    assert two.ratio_low < two.ratio < two.ratio_high
    assert got.per_s(0, 0) == pytest.approx(8 / 4)
    assert got.tokens(1, 2) == tuple(range(8))


def test_arms_alternate_in_a_seeded_random_order():
    log = []
    arms = [scripted(n, log, lambda key, n: 1.0) for n in "abc"]
    race(arms, PROMPTS, max_tokens=2, repeats=6, seed=3, warm=0)
    rounds = [log[i : i + 3] for i in range(0, len(log), 3)]
    assert len(rounds) == 18
    assert all({name for name, _ in turn} == set("abc") and len({key for _, key in turn}) == 1 for turn in rounds)
    assert len({tuple(name for name, _ in turn) for turn in rounds}) > 3
    again = []
    race([scripted(n, again, lambda key, n: 1.0) for n in "abc"], PROMPTS, max_tokens=2, repeats=6, seed=3, warm=0)
    assert again == log


def test_short_passes_are_repeated_until_min_seconds():
    arms = [scripted("a", [], lambda key, n: 1.0), scripted("b", [], lambda key, n: 0.0, prefill=0.5)]
    got = race(arms, [[1]], max_tokens=2, repeats=2, min_seconds=4.0)
    # Arm b runs 0.5 s a pass: eight rounds until it has its four seconds.
    assert got.speeds[0].repeats == got.speeds[1].repeats == 8
    assert (
        race([scripted("z", [], lambda key, n: 0.0, prefill=0.0)], [[1]], max_tokens=2, min_seconds=1).speeds[0].repeats
        == 50
    )


def test_arms_are_compared_per_token():
    """An arm that stops after half the ids in half the time is not twice as fast."""
    arms = [
        scripted("a", [], lambda key, n: 8.0, prefill=0),
        scripted("b", [], lambda key, n: 4.0, tokens=4, prefill=0),
    ]
    got = race(arms, PROMPTS, max_tokens=8)
    assert [s.tokens for s in got.speeds] == [24, 12]
    assert got.speeds[1].ratio == pytest.approx(1.0)
    assert (got.speeds[1].ratio_low, got.speeds[1].ratio_high) == (1.0, 1.0)


def test_interval_is_paired():
    # Passes drift threefold, both arms alike: the ratio stays known to the last digit.
    base = [[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]]
    half = [[v / 2 for v in row] for row in base]
    assert ratio_interval(base, [5, 5], half, [5, 5]) == pytest.approx((2.0, 2.0))
    low, high = ratio_interval(base, [5, 5], half[::-1], [5, 5])
    assert low < 2.0 < high


def test_a_race_needs_runners():
    with pytest.raises(ValueError, match="at least one arm"):
        race([], PROMPTS, max_tokens=1)


def test_ticks_once_per_pass():
    ticks = []
    race([scripted("a", [], lambda key, n: 1.0)], PROMPTS, max_tokens=1, repeats=2, tick=lambda: ticks.append(1))
    assert len(ticks) == 7


def test_a_plan_as_an_arm():
    model = TableModel(vocab=12, seed=1, order=1)
    plan = Plan((make_knob("decode.draft.lookup", {}),))
    costs = CostTable({1: 1.0, 2: 1.0})
    arms = [plan_arm("plain", model), plan_arm("lookup", model, plan, costs=costs)]
    got = race(arms, [[1, 2, 3], [4, 5]], max_tokens=30, repeats=2)
    for p in range(2):
        assert got.tokens(0, p) == got.tokens(1, p)
        assert len(got.tokens(0, p)) == 30
    drafted = got.passes[1][0][0].completion
    assert drafted is not None
    assert drafted.stats.accepted > 0
    assert [s.name for s in got.speeds] == ["plain", "lookup"]
    assert all(s.tokens == s.decoded == 60 and s.decode_s > 0 for s in got.speeds)


def test_an_arm_ends_at_end_tokens_unless_told_to_go_on():
    free = plan_arm("a", TableModel(vocab=24, seed=1)).run([1, 2], 12).tokens
    ended = TableModel(vocab=24, seed=1, end=free[4])
    cut = free.index(free[4]) + 1
    assert plan_arm("a", ended).run([1, 2], 12).tokens == free[:cut]
    assert plan_arm("a", ended, ignore_eos=True).run([1, 2], 12).tokens == free
