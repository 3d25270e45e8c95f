"""Logits as a law, in double precision."""

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]


def softmax(logits: npt.NDArray[np.float32]) -> Doubles:
    """Probabilities [V] of logits [V]; -inf becomes 0."""
    law = logits.astype(np.float64)
    law -= law.max()
    np.exp(law, out=law)
    law /= law.sum()
    return law


def draw(law: Doubles, coin: float) -> int:
    """The id at `coin` in [0, 1) of the cumulative law [V], which need not be normalised; never an id of mass 0."""
    heap = law.cumsum()
    found = int(heap.searchsorted(coin * heap[-1], side="right"))
    # coin * total can round up to the total itself.
    return found if found < len(law) else int(np.flatnonzero(law)[-1])
