"""Scores to integers: the definition in numpy and the engine agree, and every row is one a decoder can use."""

import hashlib

import numpy as np
import pytest

from steno.codecs import _tables
from steno.codecs.frequencies import frequencies, num_bits, reference


def rows(vocab: int, count: int = 6) -> np.ndarray:
    rng = np.random.default_rng(vocab)
    scores = rng.normal(0, 4, (count, vocab)).astype(np.float32)
    scores[1] = 0
    scores[2, :] = -np.inf
    scores[3, rng.integers(vocab)] = np.inf
    scores[4, rng.integers(vocab, size=vocab // 3 + 1)] = np.nan
    scores[5] = rng.integers(-3, 3, vocab) / np.float32(32)  # halfway cases
    return scores


def test_by_hand():
    # Two equal scores and one 16 steps (1 nat) below: e : e : 1 of 1024 is 432.7 : 432.7 : 159.2, less one each that
    # every symbol has for certain; what rounding leaves goes to the first.
    assert frequencies(np.array([[1, 1, 0]], np.float32), 10).tolist() == [[433, 432, 159]]
    # Far below is never impossible.
    assert frequencies(np.array([[0, -1000]], np.float32), 10).tolist() == [[1023, 1]]


@pytest.mark.parametrize("vocab", [2, 3, 16, 17, 257, 4096, 4097, 50000])
def test_the_engine_equals_the_definition(vocab: int):
    scores, bits = rows(vocab), num_bits(vocab)
    found = frequencies(scores, bits)
    assert np.array_equal(found, reference(scores, bits))
    assert (found >= 1).all()
    assert (found.sum(axis=1, dtype=np.uint64) == 2**bits).all()


def test_the_rest_goes_to_the_lowest_of_equals():
    found = frequencies(np.array([[0, 5, 5, 5]], np.float32), 8)[0].tolist()
    assert found[2] == found[3] <= found[1]


def test_input_is_left_alone():
    scores = rows(64)
    before = scores.copy()
    frequencies(scores, 24)
    assert np.array_equal(before, scores, equal_nan=True)


def test_the_tables_of_the_format_are_what_they_were():
    after, total, guess = _tables.histories()
    digest = hashlib.sha256()
    for table in (_tables.exponentials(), _tables.logarithms(), _tables.logistic(), after, total, guess):
        digest.update(table.astype(table.dtype.newbyteorder("<")).tobytes())
    assert digest.hexdigest() == "a849e9c984e97ad7915b0db1a1f294f9786495ba8b96dedfbe04acf298b3fc24"


def test_histories_count_and_forget():
    after, total, guess = _tables.histories()
    state = 0
    for _ in range(50):
        state = after[state, 1]
    assert guess[state] > 60000
    surprised = after[state, 0]
    assert total[surprised] < total[state]
    assert guess[surprised] < guess[state]
