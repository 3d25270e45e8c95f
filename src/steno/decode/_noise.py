"""Gumbel noise over a vocabulary, a pure function of a key: made by the engine, for every backend.

Philox words and the engine's own logarithm, so the noise has the same bits on every machine and moves with no library.
float32: where the noise is large, and so decides, its spacing is below 1e-6.
"""

import numpy as np
import numpy.typing as npt

from steno.core import Key
from steno.models import _engine

Floats = npt.NDArray[np.float32]


def gumbel(key: Key, count: int) -> Floats:
    """`count` standard Gumbel numbers [V], finite: -log(-log(1 - v)) with v on a grid of 2^32 interior points."""
    return _engine.gumbel(_words(key), count)


def draw(key: Key, logits: Floats) -> int:
    """argmax(logits + gumbel(key, V)), the lowest id among equals; the noise is never stored."""
    return _engine.draw(_words(key), np.ascontiguousarray(logits, np.float32))


def _words(key: Key) -> list[int]:
    bits = key.bits(128)
    return [bits >> shift & 0xFFFFFFFF for shift in (0, 32, 64, 96)]
