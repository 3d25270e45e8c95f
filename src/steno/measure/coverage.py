"""Calibration of partial programs: the largest threshold under which the true program is in the set, with confidence.

An example is a program as a model wrote it, and the one that should have come. For a threshold tau the set of partial
programs (`decode.search.pac`) covers it or does not. Thresholds are tested one after another from the safest, each
hypothesis "the set misses with probability above epsilon" by an exact binomial test at level delta, up to the first
that is not rejected: testing in a fixed sequence keeps the whole at level delta, whatever shape the risk has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, fsum, lgamma, log

from steno.decode._holes import Program, covers, open_spans


@dataclass(frozen=True, slots=True)
class Example:
    """code    what the model wrote, behind its prompt
    logs    log-probabilities of its tokens
    truth   prompt and text as they should be
    """

    code: Program
    logs: tuple[float, ...]
    truth: str

    def covered(self, tau: float, holes: int) -> bool:
        """Whether the set at `tau` holds the truth."""
        return covers(self.code, open_spans(self.code, self.logs, tau, holes), self.truth)

    def open_share(self, tau: float, holes: int) -> float:
        """The share of tokens that are left out."""
        spans = open_spans(self.code, self.logs, tau, holes)
        return sum(end - start for start, end in spans) / max(self.code.tokens, 1)


def calibrate(
    examples: Sequence[Example], taus: Sequence[float], *, epsilon: float, delta: float, holes: int
) -> float | None:
    """The last of `taus`, from the safest on, at which a miss rate above `epsilon` is rejected; None where none is.

    With probability 1 - delta over the examples, the set at the threshold misses with probability `epsilon` at most.
    """
    found: float | None = None
    for tau in taus:
        misses = sum(not example.covered(tau, holes) for example in examples)
        if at_most(misses, len(examples), epsilon) > delta:
            break
        found = tau
    return found


def at_most(misses: int, count: int, epsilon: float) -> float:
    """The probability of `misses` or fewer among `count` of probability `epsilon` each.

    >>> round(at_most(0, 10, 0.5) * 1024, 6), round(at_most(1, 10, 0.5) * 1024, 6)
    (1.0, 11.0)
    """
    if not 0.0 < epsilon < 1.0:
        return float(epsilon <= 0.0 or misses >= count)
    whole = lgamma(count + 1)
    return fsum(
        exp(whole - lgamma(k + 1) - lgamma(count - k + 1) + k * log(epsilon) + (count - k) * log(1 - epsilon))
        for k in range(misses + 1)
    )
