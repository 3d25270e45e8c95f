"""Two layers that share what they store: the pages of a pair stand once, and each layer reads its own side of them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from steno.core import CacheSpec, KVShape

from ._paged import Form, PagedTier


class PairedTier(PagedTier):
    """A `PagedTier` in which layer l of `lower` is stored together with layer l + 1.

    The form of the upper layer encodes k, v [2 G, T, D], the lower layer's heads first; the form of either decodes what
    came of it into its own side, [G, T, D].
    """

    def __init__(self, spec: CacheSpec, forms: Sequence[Form], shape: KVShape, lower: frozenset[int]) -> None:
        super().__init__(spec, forms, shape)
        self.lower = lower
        self._waiting: tuple[Tensor, Tensor] | None = None

    def seal(self, row: int, layer: int, k: Tensor, v: Tensor) -> None:
        if layer in self.lower:
            # A session hands over all layers of a row in turn, and reads none before the last.
            self._waiting = k.clone(), v.clone()
            return
        if layer - 1 in self.lower:
            assert self._waiting is not None
            k, v = (torch.cat(both) for both in zip(self._waiting, (k, v), strict=True))
            self._waiting = None
        super().seal(row, layer, k, v)
        if layer - 1 in self.lower:
            self._pages[row][layer - 1] = self._pages[row][layer]
