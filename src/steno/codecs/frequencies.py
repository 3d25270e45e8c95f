"""Scores to integer frequencies: the one place where floats become integers. Everything after it is exact.

Steps of 1/16 nat below the best score, exponentials from a table in Q30, at least 1 for every symbol, what is left over
to the best symbol (the lowest id of equals). The float32 operations used (a difference, a product with 16, a sum with
1/2, a cut to a whole number) are rounded in one way only, so every processor finds the same integers.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from . import _coder, _tables

U32 = npt.NDArray[np.uint32]
F32 = npt.NDArray[np.float32]


def num_bits(vocab: int) -> int:
    """log2 of the sum of the frequencies of a vocabulary: small enough a floor of 1 must not cost much."""
    return 24 if vocab <= 4096 else 28


def frequencies(scores: F32, bits: int) -> U32:
    """Frequencies [N, V] of scores [N, V]; each row sums to 2^bits. A score that is no number counts as the worst.

    >>> frequencies(np.array([[0.0, 0.0]], np.float32), 4).tolist()
    [[8, 8]]
    """
    return _coder.frequencies(tables(), np.ascontiguousarray(scores, np.float32), bits)


def reference(scores: F32, bits: int) -> U32:
    """`frequencies` as its definition, in numpy."""
    table = _tables.exponentials().astype(np.uint64)
    last = len(table) - 1
    out = np.empty(scores.shape, np.uint32)
    for row, line in zip(out, scores, strict=True):
        numbers = line[~np.isnan(line)]
        best = numbers.max() if len(numbers) else np.float32(-np.inf)
        with np.errstate(invalid="ignore", over="ignore"):
            gap = (best - line) * np.float32(16)
            gap = np.where(gap < np.float32(last), gap, np.float32(last))
        steps = (gap + np.float32(0.5)).astype(np.int64)
        mass = int(table[steps].sum())
        scale = ((2**bits - len(line)) << 33) // mass if mass else 0
        row[:] = 1 + ((table[steps] * np.uint64(scale)) >> np.uint64(33))
        top = int(np.argmax(steps == 0)) if (steps == 0).any() else 0
        row[top] += 2**bits - int(row.sum(dtype=np.uint64))
    return out


@lru_cache(maxsize=1)
def tables() -> _coder.Tables:
    """The format's tables, as the engine holds them."""
    after, total, guess = _tables.histories()
    return _coder.Tables(
        _tables.exponentials(), _tables.logarithms(), _tables.logistic(), after.ravel(), total, guess
    )  # fmt: skip
