"""Counted n-grams of token ids, and the probabilities they give the next token."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from steno.core.errors import UserError

WEIGHTS = (0.01, 0.04, 0.15, 0.18, 0.12)
"""Of contexts of 1 to 5 tokens, as in the authors' code of superposed decoding."""


class Ngrams:
    """What followed every context of up to five tokens in `ids`."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._after: dict[tuple[int, ...], Counter[int]] = {}
        for end in range(1, len(ids)):
            for size in range(1, min(len(WEIGHTS), end) + 1):
                self._after.setdefault(tuple(ids[end - size : end]), Counter())[ids[end]] += 1

    def law(self, past: Sequence[int], tokens: Iterable[int]) -> dict[int, float]:
        """Interpolated probability of each of `tokens` after `past`: 0 where none of its contexts was seen before it.

        >>> Ngrams([1, 2, 1, 3]).law([9, 1], [2, 3, 4])
        {2: 0.005, 3: 0.005, 4: 0.0}
        """
        out = dict.fromkeys(tokens, 0.0)
        for size, weight in enumerate(WEIGHTS[: len(past)], 1):
            seen = self._after.get(tuple(past[-size:]))
            if seen is None:
                # A longer context holds this one.
                break
            total = seen.total()
            for token in out:
                out[token] += weight * seen[token] / total
        return out


def corpus(path: str) -> Ngrams:
    """The n-grams of the token ids in a .npy file. Raises UserError for another file."""
    file = Path(path)
    try:
        stamp = file.stat().st_mtime_ns
    except OSError:
        raise UserError(f"corpus: there is no file {path}. Save token ids there with numpy.save.") from None
    return _read(path, stamp)


@lru_cache(maxsize=2)
def _read(path: str, stamp: int) -> Ngrams:
    """`stamp` is part of the cache's key."""
    try:
        ids = np.load(path, allow_pickle=False)
    except (ValueError, EOFError):
        ids = np.zeros(1)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise UserError(f"corpus: {path} holds no row of token ids. Save one with numpy.save(path, ids).")
    return Ngrams([int(i) for i in ids])
