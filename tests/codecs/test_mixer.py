"""The mixer: engine and reference find the same bytes; adaptation helps where it should; drafts come from repeats."""

import numpy as np
import pytest

from steno.codecs import _coder
from steno.codecs.chunk import Chunk
from steno.codecs.frequencies import tables
from steno.codecs.mixer import Counter, Curve, log, odds, squash


def engine(places: np.ndarray, lanes: int, symbols: int, adapt: bool) -> _coder.Chunk:
    return _coder.Chunk(tables=tables(), places=places, lanes=lanes, symbols=symbols, adapt=adapt)


def message(vocab: int, lanes: int, symbols: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(places, ids [lanes, T], scores [lanes, T, V]): repeats, noise, and scores that are no numbers."""
    rng = np.random.default_rng(vocab + lanes)
    steps = -(-symbols // lanes)
    ids = np.resize(rng.integers(0, min(vocab, 40), 25), (lanes, steps)).astype(np.int32)
    noisy = rng.random(ids.shape) < 0.1
    ids[noisy] = rng.integers(0, vocab, noisy.sum())
    scores = rng.normal(0, 3, (lanes, steps, vocab)).astype(np.float32)
    scores[0, 0, 0], scores[0, 1], scores[0, 2, 1] = np.nan, -np.inf, np.inf
    return rng.permutation(vocab).astype(np.int32), ids, scores


CASES = [(300, 3, 400, True), (256, 1, 260, True), (2, 2, 90, True), (5, 2, 100, True), (300, 4, 122, False),
         (5000, 2, 60, True), (70000, 1, 9, True)]  # fmt: skip


@pytest.mark.parametrize("vocab, lanes, symbols, adapt", CASES)
def test_the_engine_equals_the_reference(vocab: int, lanes: int, symbols: int, adapt: bool):
    places, ids, scores = message(vocab, lanes, symbols)
    slow = Chunk(places=places, lanes=lanes, symbols=symbols, adapt=adapt)
    slow.encode(scores, ids)
    fast = engine(places, lanes, symbols, adapt)
    for at in range(0, ids.shape[1], 7):
        fast.encode(scores[:, at : at + 7], np.ascontiguousarray(ids[:, at : at + 7]))
    code = slow.finish()
    assert fast.finish() == code
    for coder in (
        engine(places, lanes, symbols, adapt),
        Chunk(places=places, lanes=lanes, symbols=symbols, adapt=adapt),
    ):
        coder.open(code)
        before, found = np.zeros((lanes, 1), np.int32), []
        for at in range(ids.shape[1]):
            steps, out = coder.decode(scores[:, at : at + 1], before, np.ones(lanes, np.int32))
            assert steps == 1
            found.append(out[:, 0])
        assert np.array_equal(np.stack(found, 1).ravel()[:symbols], ids.ravel()[:symbols])


def test_drafts_are_what_followed_the_longest_context():
    places, ids = np.arange(50, dtype=np.int32), np.resize(np.arange(9), 60).astype(np.int32)
    coder = engine(places, 1, 80, True)
    coder.encode(np.zeros((1, 80, 50), np.float32), np.resize(ids, (1, 80)).astype(np.int32))
    code = coder.finish()
    back = engine(places, 1, 80, True)
    assert back.draft(3).tolist() == [[-1] * 3]
    back.open(code)
    for at in range(60):
        back.decode(np.zeros((1, 1, 50), np.float32), ids[None, at : at + 1], np.ones(1, np.int32))
    assert back.draft(5).tolist() == [[6, 7, 8, 0, 1]]


def test_what_repeats_costs_less_and_equal_scores_lose():
    rng = np.random.default_rng(0)
    once = rng.integers(0, 256, 600).astype(np.int32)

    def size(ids: np.ndarray) -> int:
        coder = engine(np.arange(256, dtype=np.int32), 1, len(ids), True)
        coder.encode_flat(ids[None])
        return len(coder.finish())

    first, twice = size(once), size(np.concatenate([once, once]))
    assert first < 640
    assert twice - first < 0.1 * first


def test_a_coded_chunk_with_equal_scores_opens():
    ids = np.frombuffer(b"abracadabra " * 40, np.uint8).astype(np.int32)
    coder = engine(np.arange(256, dtype=np.int32), 1, len(ids), True)
    coder.encode_flat(ids[None])
    code = coder.finish()
    back = engine(np.arange(256, dtype=np.int32), 1, len(ids), True)
    back.open(code)
    parts = [back.decode_flat(width) for width in (1, 99, len(ids) - 100)]
    assert np.array_equal(np.concatenate(parts, axis=1)[0], ids)


def test_log_odds_by_hand():
    assert log(1) == 0
    assert abs(log(2**20) / 65536 - 13.862944) < 1e-3
    assert odds(1, 1) == 0
    assert odds(3, 1) == -odds(1, 3) - 1 or odds(3, 1) == -odds(1, 3)
    assert squash(0) == 32768
    assert squash(10**9) == 65535
    assert squash(-(10**9)) == 1


def test_counters_and_curves_learn():
    counter, curve = Counter(32768, 255), Curve()
    for _ in range(40):
        counter.learn(1)
    assert counter.odds() > 256
    assert abs(curve.refine(300) - squash(300)) < 700
    for _ in range(200):
        curve.refine(300)
        curve.learn(0)
    assert curve.refine(300) < 15000


@pytest.mark.parametrize("places", [[0, 0], [0, 2], [-1, 0]])
def test_places_that_are_no_permutation_are_refused(places: list[int]):
    with pytest.raises(ValueError, match="permutation"):
        engine(np.array(places, np.int32), 1, 4, True)


def test_misuse_is_refused():
    coder = engine(np.arange(4, dtype=np.int32), 2, 4, True)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        coder.encode(np.zeros((2, 1, 4), np.float32), np.full((2, 1), 4, np.int32))
    with pytest.raises(ValueError, match="scores"):
        coder.encode(np.zeros((1, 1, 4), np.float32), np.zeros((1, 1), np.int32))
    with pytest.raises(RuntimeError, match="open comes before decode"):
        coder.decode_flat(1)
