"""The tables of the format, made by integer and decimal arithmetic only: no maths library takes part.

They are part of the format (docs/format.md): another table is another coder, and `CODER` gets a new number.
"""

from decimal import Decimal, localcontext
from functools import lru_cache

import numpy as np
import numpy.typing as npt

STEPS = 16
"""Steps of a score per nat."""

ONE = 1 << 30
"""exp(0) in the table of exponentials."""

UNIT = 256
"""Steps of a log-odds value per nat."""

ODDS = 12 * UNIT - 1
"""Largest log-odds value: p between 6e-6 and 1 - 6e-6."""

MANTISSA = 2048
"""Entries of the table of logarithms: ln(1 + i / 2048)."""

# Largest companion of a rare bit's count, by that count: what one byte of history can hold.
BOUNDS = (40, 30, 12, 5, 4)

U32 = npt.NDArray[np.uint32]
I32 = npt.NDArray[np.int32]


@lru_cache(maxsize=1)
def exponentials() -> U32:
    """exp(-i / 16) in Q30, down to where it rounds to 0."""
    with localcontext(prec=40):
        ratio = (Decimal(-1) / STEPS).exp()
        value, out = Decimal(ONE), []
        while value >= Decimal("0.5"):
            out.append(int(value.to_integral_value()))
            value *= ratio
    return np.array([*out, 0], np.uint32)


@lru_cache(maxsize=1)
def logarithms() -> I32:
    """ln(1 + i / 2048) in Q16; the last entry is ln 2."""
    with localcontext(prec=40):
        values = [(1 + Decimal(i) / MANTISSA).ln() * 65536 for i in range(MANTISSA + 1)]
    return np.array([int(v.to_integral_value()) for v in values], np.int32)


@lru_cache(maxsize=1)
def logistic() -> I32:
    """1 / (1 + exp(-x / 256)) in Q16 for x in [-ODDS, ODDS], kept within [1, 65535]."""
    with localcontext(prec=40):
        ratio = (Decimal(1) / UNIT).exp()
        power, out = Decimal(1), []
        for _ in range(ODDS + 1):
            out.append(min(int((65536 * power / (1 + power)).to_integral_value()), 65535))
            power *= ratio
    return np.array([65536 - v for v in reversed(out[1:])] + out, np.int32)


@lru_cache(maxsize=1)
def histories() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint16]]:
    """Bit histories in a byte: (state after a bit [256, 2], total count [256], first guess of P(1) in Q16 [256]).

    A state is (zeros, ones, last bit), the last bit told only where both counts are above zero. A bit adds one to its
    own count; the other count, where above 2, falls to 2 + (its excess) / 4: old evidence fades when contradicted.
    """
    states = [
        (zeros, ones, last)
        for zeros in range(BOUNDS[0] + 1)
        for ones in range(BOUNDS[0] + 1)
        for last in ((0, 1) if zeros and ones else (0,))
        if min(zeros, ones) < len(BOUNDS) and max(zeros, ones) <= BOUNDS[min(zeros, ones)]
    ]
    states.sort(key=lambda s: (s[0] + s[1], s))
    number = {state: i for i, state in enumerate(states)}
    after = np.zeros((256, 2), np.uint8)
    total = np.zeros(256, np.uint8)
    guess = np.full(256, 32768, np.uint16)
    for (zeros, ones, _), i in number.items():
        total[i] = zeros + ones
        guess[i] = (65536 * (2 * ones + 1)) // (2 * (zeros + ones) + 2)
        for bit in (0, 1):
            counts = [zeros, ones]
            counts[bit] += 1
            if counts[1 - bit] > 2:
                counts[1 - bit] = 2 + (counts[1 - bit] - 2) // 4
            after[i, bit] = number[_held(counts[0], counts[1], bit)]
    return after, total, guess


def _held(zeros: int, ones: int, bit: int) -> tuple[int, int, int]:
    """The nearest state there is: the larger count gives way."""
    while min(zeros, ones) >= len(BOUNDS) or max(zeros, ones) > BOUNDS[min(zeros, ones)]:
        if zeros > ones:
            zeros -= 1
        elif ones > zeros:
            ones -= 1
        elif bit:
            zeros -= 1
        else:
            ones -= 1
    return zeros, ones, bit if zeros and ones else 0
