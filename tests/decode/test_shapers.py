"""Shapers: by hand, against transformers' own, and pure."""

import numpy as np
import pytest

from steno.decode._law import softmax
from steno.decode.shape.min_p import MinP
from steno.decode.shape.repetition import Repetition
from steno.decode.shape.temperature import Temperature
from steno.decode.shape.top_k import TopK
from steno.decode.shape.top_p import TopP

INF = float("inf")


def row(*values):
    return np.array(values, np.float32)


def kept(logits):
    return np.flatnonzero(np.isfinite(logits)).tolist()


def test_temperature_by_hand():
    assert Temperature(temperature=2.0).shape(row(1, -2), ()).tolist() == [0.5, -1.0]
    assert Temperature(temperature=0.0).shape(row(1, 3, 3), ()).tolist() == [-INF, 0.0, -INF]


def test_top_k_keeps_exactly_k_and_the_lower_id_of_equals():
    assert kept(TopK(k=2).shape(row(5, 1, 4, 4, 4), ())) == [0, 2]
    assert kept(TopK(k=3).shape(row(5, 1, 4, 4, 4), ())) == [0, 2, 3]
    assert kept(TopK(k=9).shape(row(5, 1, 4), ())) == [0, 1, 2]
    assert kept(TopK(k=2).shape(row(-INF, 1, -INF), ())) == [1]


def test_top_p_by_hand():
    logits = np.log(row(0.1, 0.5, 0.25, 0.15))
    for p, ids in ((0.0, [1]), (0.4, [1]), (0.6, [1, 2]), (0.8, [1, 2, 3]), (0.95, [0, 1, 2, 3]), (1.0, [0, 1, 2, 3])):
        assert kept(TopP(p=p).shape(logits, ())) == ids
    assert kept(TopP(p=0.5).shape(row(1, 1, 1, 1), ())) == [0, 1]


@pytest.mark.parametrize("spread", [0.01, 1.0, 20.0])
@pytest.mark.parametrize("p", [0.0, 0.3, 0.95, 0.999999])
def test_top_p_of_many_is_top_p_of_all(spread, p):
    """Whether the best few hold the mass or not, and with ties at their edge, the same ids stay."""
    noise = np.random.default_rng(1)
    logits = (noise.normal(size=4000) * spread).astype(np.float32).round(3)
    law = softmax(logits)
    order = np.argsort(-logits, kind="stable")
    stay = order[: 1 + int(np.searchsorted(np.cumsum(law[order]), p))]
    assert set(np.flatnonzero(np.isfinite(TopP(p=p).shape(logits, [])))) == set(stay)


def test_min_p_by_hand():
    logits = np.log(row(0.1, 0.5, 0.25, 0.15))
    for p, ids in ((0.0, [0, 1, 2, 3]), (0.25, [1, 2, 3]), (0.45, [1, 2]), (1.0, [1])):
        assert kept(MinP(p=p).shape(logits, ())) == ids


def test_repetition_by_hand():
    out = Repetition(penalty=2.0).shape(row(4, -4, 3, -3), (0, 1, 1, 0))
    assert out.tolist() == [2, -8, 3, -3]
    assert Repetition(penalty=2.0).shape(row(4, -4), ()).tolist() == [4, -4]


SHAPERS = [
    (Temperature(temperature=0.7), "TemperatureLogitsWarper", {"temperature": 0.7}),
    (TopK(k=5), "TopKLogitsWarper", {"top_k": 5}),
    (TopP(p=0.8), "TopPLogitsWarper", {"top_p": 0.8}),
    (TopP(p=0.05), "TopPLogitsWarper", {"top_p": 0.05}),
    (MinP(p=0.1), "MinPLogitsWarper", {"min_p": 0.1}),
    (Repetition(penalty=1.3), "RepetitionPenaltyLogitsProcessor", {"penalty": 1.3}),
    (Repetition(penalty=0.7), "RepetitionPenaltyLogitsProcessor", {"penalty": 0.7}),
]


@pytest.mark.parametrize(("shaper", "name", "settings"), SHAPERS, ids=lambda v: getattr(v, "name", None))
def test_agrees_with_transformers(shaper, name, settings):
    torch = pytest.importorskip("torch")
    processes = pytest.importorskip("transformers.generation.logits_process")
    theirs = getattr(processes, name)(**settings)
    rng = np.random.default_rng(0)
    for size in (7, 50, 1000):
        for _ in range(10):
            logits = rng.normal(0, 3, size).astype(np.float32)
            past = rng.integers(0, size, 20).tolist()
            before = logits.copy()
            ours = shaper.shape(logits, past)
            assert (logits == before).all() and ours.dtype == np.float32
            want = theirs(torch.tensor([past]), torch.from_numpy(logits.copy())[None])[0].numpy()
            np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(want))
            np.testing.assert_allclose(ours[np.isfinite(ours)], want[np.isfinite(want)], rtol=1e-6)
