"""Momentum and repetition-aware sampling: by hand, against naive oracles, and under drafts."""

import numpy as np
import pytest
from rig import Strict, plain, requests, run, softmax

from steno.core import Plan
from steno.decode import Request
from steno.decode.accept.gumbel import Gumbel
from steno.decode.draft.suffix import Suffix
from steno.decode.shape.momentum import RESISTANCE, Momentum, repetition
from steno.decode.shape.repetition_aware import RepetitionAware
from steno.decode.shape.temperature import Temperature


def law_of(shaper, law, past):
    with np.errstate(divide="ignore"):
        return softmax(shaper.shape(np.log(np.array(law, np.float32)), past))


def test_repetition_aware_by_hand():
    """Nucleus {0, 1} of p: 5/8 and 3/8. Token 0 is too frequent: its 5/8 go to p itself."""
    p = np.array([0.5, 0.3, 0.2])
    shaper = RepetitionAware(p=0.7, window=4, ratio=0.5)
    np.testing.assert_allclose(law_of(shaper, p, [2, 1, 0, 2]), [5 / 8, 3 / 8, 0], atol=1e-6)
    np.testing.assert_allclose(law_of(shaper, p, [0, 1, 0, 2]), 5 / 8 * p + [0, 3 / 8, 0], atol=1e-6)
    # Only the last four count, and a short past is measured against the whole window.
    np.testing.assert_allclose(law_of(shaper, p, [0, 0, 0, 0, 2, 1, 1, 0]), [5 / 8, 0, 0] + 3 / 8 * p, atol=1e-6)
    np.testing.assert_allclose(law_of(shaper, p, [0]), [5 / 8, 3 / 8, 0], atol=1e-6)
    np.testing.assert_allclose(law_of(RepetitionAware(p=0.9, k=1), p, []), [1, 0, 0], atol=1e-6)


def test_where_all_of_the_nucleus_repeats_the_law_is_whole():
    p = np.array([0.5, 0.3, 0.2])
    np.testing.assert_allclose(law_of(RepetitionAware(p=0.7), p, [0, 1]), p, atol=1e-6)


def test_repetition_aware_against_the_two_draws_of_the_paper():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(8))
    past = rng.integers(0, 8, 12).tolist()
    shaper = RepetitionAware(p=0.7, k=5, window=6, ratio=0.3)
    order = np.argsort(-p)
    size = next(n for n in range(1, 9) if p[order[:n]].sum() >= 0.7)
    inner = order[: min(size, 5)]
    count = 200_000
    first = rng.choice(inner, count, p=p[inner] / p[inner].sum())
    second = rng.choice(8, count, p=p)
    often = np.array([past[-6:].count(v) / 6 >= 0.3 for v in range(8)])
    drawn = np.bincount(np.where(often[first], second, first), minlength=8) / count
    assert often[inner].any() and not often[inner].all()
    assert np.abs(drawn - law_of(shaper, p, past)).sum() / 2 < 0.005


def test_momentum_by_hand():
    """3 would complete the repetition 1 2 3 and costs 0.2 * 4; 4 has been there and costs 0.2; 5 is new."""
    p = np.array([0.02, 0.02, 0.02, 0.5, 0.3, 0.14])
    past = [1, 2, 3, 4, 1, 2]
    assert law_of(Momentum(), p, past).tolist() == [0, 0, 0, 0, 0, 1]
    assert law_of(Momentum(k=2), p, past).argmax() == 4
    assert law_of(Momentum(alpha=0.0), p, past).argmax() == 3
    assert law_of(Momentum(alpha=0.05), p, past).argmax() == 3
    assert law_of(Momentum(), p, [1, 2]).argmax() == 3


def naive_repetition(past, token):
    text = [*past, token]
    sizes = [n for n in range(1, 7) if any(past[i : i + n] == text[-n:] for i in range(len(past) - n + 1))]
    return max(sizes, default=0)


def test_lengths_against_brute_force():
    rng = np.random.default_rng(1)
    for letters in (1, 2, 3, 9):
        for size in (0, 1, 2, 5, 30):
            past = rng.integers(0, letters, size).tolist()
            for token in range(letters):
                assert repetition(past, token) == naive_repetition(past, token)
    assert list(RESISTANCE) == sorted(set(RESISTANCE))


def test_no_six_tokens_come_twice():
    """Greedy decoding of this model runs in a circle; with momentum no window of six tokens does."""
    model = Strict(vocab=12, order=1, seed=3)
    asked = [Request(number=n, prompt=(n,), max_tokens=50) for n in range(3)]
    windows = [[c.tokens[i : i + 6] for i in range(len(c.tokens) - 5)] for c in run(model, asked, Momentum())]
    assert sum(map(len, windows)) > 40 and all(len(set(w)) == len(w) for w in windows)
    assert any(len(set(w)) < len(w) for w in ([c.tokens[i : i + 6] for i in range(20)] for c in run(model, asked)))


@pytest.mark.parametrize(
    "knobs", [(Momentum(),), (Temperature(), RepetitionAware(), Gumbel())], ids=["momentum", "ras"]
)
def test_drafts_change_nothing(knobs):
    model = Strict(vocab=20, order=1, seed=3, end=4)
    asked = requests(6, vocab=20, seed=2)
    done = run(model, asked, *knobs, Suffix(), batch=3)
    assert [(c.tokens, c.finish) for c in done] == [plain(model, r, Plan(knobs)) for r in asked]
    assert sum(c.stats.accepted for c in done) > 0
