"""The few statistics of the room: intervals over texts, a ratio's paired error, a test with a kept false-alarm rate."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]

DRAWS = 2000


def bootstrap_mean(groups: Sequence[Doubles], seed: int) -> tuple[float, float]:
    """95 % interval of the mean over all values, resampling whole groups: values of one text are not independent."""
    rng = np.random.default_rng(seed)
    sums = np.array([group.sum() for group in groups])
    counts = np.array([len(group) for group in groups], np.float64)
    picks = rng.integers(0, len(groups), (DRAWS, len(groups)))
    means = sums[picks].sum(axis=1) / counts[picks].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975), method="nearest")
    return float(low), float(high)


def paired_ratio(above: Sequence[float], below: Sequence[float]) -> tuple[float, float | None]:
    """sum(above) / sum(below) and its standard error over the pairs (linearised); None for a single pair."""
    a, b = np.asarray(above, np.float64), np.asarray(below, np.float64)
    ratio = float(a.sum() / b.sum())
    if len(a) < 2:
        return ratio, None
    rest = a - ratio * b
    return ratio, float(math.sqrt(len(a) / (len(a) - 1) * (rest**2).sum()) / b.sum())


def total_variation(counts: npt.ArrayLike, law: npt.ArrayLike) -> float:
    """Half the L1 distance of observed shares and `law`, over the same cells; 1 where the law forbids what was seen."""
    seen, wanted = np.asarray(counts, np.float64), np.asarray(law, np.float64)
    if (seen[wanted == 0] > 0).any():
        return 1.0
    return float(np.abs(seen / seen.sum() - wanted).sum() / 2)


def variation_limit(cells: int, samples: int, alarm: float) -> float:
    """The total variation that `samples` true draws over `cells` cells exceed with a chance of at most `alarm`.

    Holds for every law and sample size (Weissman et al. 2003, theorem 2.1), so a false-alarm rate is kept, not hoped
    for: P(TV >= e) <= (2^cells - 2) exp(-2 samples e^2).
    """
    return math.sqrt((cells * math.log(2) + math.log(1 / alarm)) / (2 * samples))


def samples_for(cells: int, limit: float, alarm: float) -> int:
    """Draws that bring `variation_limit` down to `limit`."""
    return math.ceil((cells * math.log(2) + math.log(1 / alarm)) / (2 * limit**2))
