"""Gumbel noise over a vocabulary, a pure function of a key.

Philox gives a stream of raw 64-bit words that numpy promises to keep; the map to floats is ours, so the noise does not
move with numpy's distribution code.
"""

import numpy as np
import numpy.typing as npt

from steno.core import Key

Doubles = npt.NDArray[np.float64]


def gumbel(key: Key, count: int) -> Doubles:
    """`count` standard Gumbel numbers [V], finite: -log(-log(u)) with u on a grid of 2^53 interior points."""
    words = np.random.Philox(key=key.bits(128)).random_raw(count)
    noise = (words >> np.uint64(11)).astype(np.float64)
    noise += 0.5
    noise *= 2.0**-53
    np.log(noise, out=noise)
    np.negative(noise, out=noise)
    np.log(noise, out=noise)
    return np.negative(noise, out=noise)
