"""Intervals and limits against closed forms and simulation."""

import numpy as np
import pytest

from steno.measure._stats import bootstrap_mean, paired_ratio, samples_for, total_variation, variation_limit


def test_bootstrap_resamples_whole_groups():
    # Within a text all values are equal: only the number of texts narrows the interval.
    few = bootstrap_mean([np.full(50, v) for v in (0.0, 1.0)], 0)
    many = bootstrap_mean([np.full(50, float(v)) for v in (0, 1) * 50], 0)
    assert few == (0.0, 1.0)
    assert 0.35 < many[0] < 0.45 < 0.55 < many[1] < 0.65


def test_paired_ratio_by_hand():
    ratio, error = paired_ratio([2.0, 4.0], [1.0, 2.0])
    assert (ratio, error) == (2.0, 0.0)
    assert paired_ratio([3.0], [2.0]) == (1.5, None)
    # Equal units: the ordinary standard error of a mean.
    values = [0.0, 1.0, 4.0, 3.0]
    ratio, error = paired_ratio(values, [1.0] * 4)
    assert ratio == 2.0
    assert error == pytest.approx(np.std(values, ddof=1) / 2)


def test_total_variation_by_hand():
    assert total_variation([30, 70], [0.5, 0.5]) == pytest.approx(0.2)
    assert total_variation([1, 99], [0.0, 1.0]) == 1.0


def test_limit_keeps_its_false_alarm_rate():
    # At a rate that can be simulated: far below 1 alarm in 20.
    law = np.array([0.4, 0.3, 0.2, 0.1])
    limit = variation_limit(4, 500, 0.05)
    draws = np.random.default_rng(0).multinomial(500, law, 4000)
    values = np.abs(draws / 500 - law).sum(1) / 2
    assert (values > limit).mean() <= 0.05
    assert limit < 0.09


def test_samples_have_the_power_asked_for():
    count = samples_for(8, 0.035, 1e-6)
    assert variation_limit(8, count, 1e-6) <= 0.035
    assert variation_limit(8, count - 1, 1e-6) > 0.035
    law = np.full(8, 1 / 8)
    bent = law.copy()
    bent[0] += 0.05
    bent[1:] -= 0.05 / 7
    draws = np.random.default_rng(1).multinomial(count, bent, 200)
    assert all(total_variation(d, law) > 0.035 for d in draws)
