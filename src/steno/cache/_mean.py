"""What is dropped leaves its mean: one slot a head that counts as often as tokens went into it."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ._kept import KeptTier, Slots

Parts = dict[str, Tensor]


class MeanTier(KeptTier):
    """Notes: the mean key and value [G, 2, D] in float32, how many they are of [1], the newest one's position [G]."""

    def folded(self, row: int, layer: int, k: Tensor, v: Tensor, where: Tensor) -> Parts:
        notes = self.noted(row, layer)
        new = torch.stack([k, v], 2)
        before = notes["number"] if notes else torch.zeros(1, dtype=torch.int32, device=k.device)
        number = before + k.shape[1]
        mean = notes["mean"] if notes else torch.zeros_like(new[:, 0])
        mean = mean + (new - mean[:, None]).sum(1) / number
        return {"mean": mean, "number": number, "newest": where[:, -1].clone(memory_format=torch.contiguous_format)}

    def _pages(self, row: int, layer: int) -> Iterator[Slots]:
        yield from super()._pages(row, layer)
        if notes := self.noted(row, layer):
            k, v = notes["mean"][:, None].unbind(2)
            where = notes["newest"][:, None]
            yield Slots(k, v, where, notes["number"].float().log().expand(where.shape))
