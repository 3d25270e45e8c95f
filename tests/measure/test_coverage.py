"""Calibration: the bound by hand and by simulation, and the sequence of tests."""

import math

import numpy as np
import pytest

from steno.decode._holes import program
from steno.measure.coverage import Example, at_most, calibrate


def example(cost, wrong):
    """x = y, where y costs something and may be another name in truth."""
    code = program("x = y", (0, 1, 2, 3, 4, 5), 0)
    return Example(code, (0.0, 0.0, 0.0, 0.0, -cost), "x = z" if wrong else "x = y")


def test_the_binomial_against_counting():
    for count, epsilon in ((1, 0.3), (7, 0.2), (30, 0.05)):
        for misses in range(count + 1):
            want = sum(math.comb(count, k) * epsilon**k * (1 - epsilon) ** (count - k) for k in range(misses + 1))
            assert at_most(misses, count, epsilon) == pytest.approx(want)


def test_by_hand():
    """Costs 1 are wrong and costs 0.5 right: up to 0.9 the wrong name is open, at 1 it no longer is."""
    some = [example(0.5, False)] * 50 + [example(1.0, True)] * 10
    assert calibrate(some, (0.0, 0.4, 0.9, 1.0, 2.0), epsilon=0.1, delta=0.05, holes=1) == 0.9
    assert some[0].open_share(0.4, 1) == 0.2 and some[0].open_share(0.9, 1) == 0.0
    # Too few examples prove nothing.
    assert calibrate(some[:5], (0.0,), epsilon=0.1, delta=0.05, holes=1) is None
    # The sequence ends at the first failure: what comes behind it is not asked.
    assert calibrate(some, (0.0, 2.0, 0.9), epsilon=0.1, delta=0.05, holes=1) == 0.0


@pytest.mark.slow
def test_the_guarantee_holds_as_often_as_it_says():
    """Wrong with probability cost / 4, costs up to 2: a threshold tau misses with probability tau^2 / 16."""
    rng = np.random.default_rng(0)
    epsilon, delta, broken, runs = 0.1, 0.1, 0, 300
    taus = np.linspace(0, 2, 41).tolist()
    for _ in range(runs):
        costs = rng.uniform(0, 2, 80)
        some = [example(float(c), bool(w)) for c, w in zip(costs, rng.uniform(size=80) < costs / 4, strict=True)]
        tau = calibrate(some, taus, epsilon=epsilon, delta=delta, holes=1)
        broken += tau is not None and tau**2 / 16 > epsilon
    assert broken / runs < delta + 3 * math.sqrt(delta * (1 - delta) / runs)
    assert broken > 0, "the test would not notice a bound that is too loose"
