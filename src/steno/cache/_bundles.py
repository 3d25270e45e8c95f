"""Layers that share what they store: the pages of a bundle stand once, and each layer reads its own side of them."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from steno.core import CacheSpec, KVShape

from ._paged import Form, Page, PagedTier


class BundledTier(PagedTier):
    """A `PagedTier` in which the layers of each of `bundles` are stored together.

    The form of a bundle's last layer encodes k, v [n G, T, D] of all its n layers, the first one's heads first; the
    form of any of them decodes what came of it into its own side, [G, T, D].
    """

    def __init__(
        self,
        spec: CacheSpec,
        forms: Sequence[Form],
        shape: KVShape,
        bundles: Sequence[range],
        *,
        before_rotation: bool = False,
        sinks: int = 0,
    ) -> None:
        super().__init__(spec, forms, shape, before_rotation=before_rotation, sinks=sinks)
        self.bundles = {layer: bundle for bundle in bundles for layer in bundle}
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def seal(self, row: int, layer: int, k: Tensor, v: Tensor) -> None:
        bundle = self.bundles.get(layer, range(layer, layer + 1))
        if layer != bundle[-1]:
            # A session hands over all layers of a row in turn, and reads none before the last.
            self._waiting = [*self._waiting, (k.clone(), v.clone())]
            return
        k, v = (torch.cat(both) for both in zip(*self._waiting, (k, v), strict=True))
        self._waiting = []
        super().seal(row, layer, k, v)
        for other in bundle[:-1]:
            self._pages[row][other] = self._pages[row][layer]

    def _decode(self, layer: int, first: int, page: Page) -> tuple[Tensor, Tensor]:
        if page.sinks is not None and layer in self.bundles:
            place, groups = layer - self.bundles[layer][0], self.shape.key_heads
            page = replace(page, sinks=page.sinks[place * groups : (place + 1) * groups])
        return super()._decode(layer, first, page)
