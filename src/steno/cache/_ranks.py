"""What makes a token worth keeping: the attention it has had, the attention it gets just now, or its age."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ._scene import Scene


@dataclass(frozen=True, slots=True)
class Received:
    """The attention a token has had from all queries so far, as each joins the tier (H2O)."""

    remembers: bool = True

    def rank(self, scene: Scene) -> Tensor:
        return scene.past + scene.attention(0, scene.sealing).mean(1).sum(1)


@dataclass(frozen=True, slots=True)
class Observed:
    """The attention a token gets from the newest `window` queries, smoothed over `kernel` neighbours (SnapKV)."""

    window: int
    kernel: int
    remembers: bool = False

    def rank(self, scene: Scene) -> Tensor:
        count = scene.q.shape[2]
        got = scene.attention(max(0, count - self.window), count).mean((1, 2))
        return torch.nn.functional.max_pool1d(got[None], self.kernel, stride=1, padding=self.kernel // 2)[0]


@dataclass(frozen=True, slots=True)
class Newest:
    """The newer, the better."""

    remembers: bool = False

    def rank(self, scene: Scene) -> Tensor:
        return scene.positions.float()
