"""The form that stores a prefix as it came: for sinks, and as the truth that other forms are held against."""

from dataclasses import dataclass

import torch
from torch import Tensor

Parts = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class DenseForm:
    """Keeps the first `most` tokens; None keeps all."""

    most: int | None = None
    unit: int = 1

    def keeps(self, sealed: int) -> int:
        return sealed if self.most is None else min(sealed, self.most)

    def encode(self, k: Tensor, v: Tensor) -> Parts:
        return {"payload": torch.stack([k, v], 2)}

    def decode(self, parts: Parts) -> tuple[Tensor, Tensor]:
        k, v = parts["payload"].float().unbind(2)
        return k, v
