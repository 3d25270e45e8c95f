"""The nucleus of a law: what top-p sampling keeps."""

import numpy as np
import numpy.typing as npt

from .._law import Doubles
from ..base import Floats

FEW = 512


def nucleus(logits: Floats, law: Doubles, p: float) -> npt.NDArray[np.int64]:
    """The ids, best first, of the smallest set of best tokens whose mass reaches `p`; of equals, lower ids first.

    `law` is the softmax of `logits`.
    """
    # Sorting a whole vocabulary costs more than a step of a small model; the best few hundred mostly hold the mass.
    best = np.flatnonzero(logits >= np.partition(logits, -FEW)[-FEW]) if len(logits) > FEW else np.arange(len(logits))
    if len(best) < len(logits) and law[best].sum() < p:
        best = np.arange(len(logits))
    order = best[np.argsort(-logits[best], kind="stable")]
    return order[: 1 + int(np.searchsorted(np.cumsum(law[order]), p, side="left"))]
