"""A tier that folds what it drops into a sum of fixed size: linear attention beside softmax attention."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import gelu

from steno.core import CacheSpec, KVShape

from ._kept import ObservingTier, Parts, Shelf
from ._lse import Part
from ._scene import Policy

SMALLEST = 1e-30


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """Two layers on each side, for each key head: [G, D, hidden] and [G, hidden, R], of queries and of keys."""

    queries: tuple[Tensor, Tensor]
    keys: tuple[Tensor, Tensor]

    def ask(self, q: Tensor) -> Tensor:
        """Features [G, N, R] of queries [G, N, D] with the softmax scale in them; never negative."""
        return _features(q, self.queries)

    def tell(self, k: Tensor) -> Tensor:
        """Features [G, N, R] of keys [G, N, D]; never negative."""
        return _features(k, self.keys)


class RecurringTier(ObservingTier):
    """Notes: of all dropped tokens the sums of features times values [G, R, D] and of features [G, R], in float32.

    `kernels` by layer; none: what is dropped is gone.
    """

    def __init__(
        self, spec: CacheSpec, policy: Policy, shelf: Shelf, kernels: Sequence[Kernel], shape: KVShape
    ) -> None:
        super().__init__(spec, policy, [[shelf]] * shape.layers, shape)
        self.kernels = kernels

    def folded(self, row: int, layer: int, k: Tensor, v: Tensor, where: Tensor) -> Parts | None:
        if not self.kernels:
            return None
        features, notes = self.kernels[layer].tell(k), self.noted(row, layer)
        sums, mass = features.mT @ v, features.sum(1)
        return {"sums": notes["sums"] + sums, "mass": notes["mass"] + mass} if notes else {"sums": sums, "mass": mass}

    def beyond(self, row: int, layer: int, q: Tensor) -> Part | None:
        notes = self.noted(row, layer)
        if not notes:
            return None
        features = self.kernels[layer].ask(q)
        mass = (features * notes["mass"][:, None]).sum(-1).clamp(min=SMALLEST)
        return features @ notes["sums"] / mass[..., None], mass.log()


def _features(x: Tensor, layers: tuple[Tensor, Tensor]) -> Tensor:
    return gelu(gelu(x @ layers[0]) @ layers[1]).abs()
