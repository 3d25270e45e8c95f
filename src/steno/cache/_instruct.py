"""A tier that keeps the queries of an instruction at the start of the text, and asks them again as the text grows."""

from dataclasses import replace

from torch import Tensor

from steno.core import CacheSpec, KVShape

from ._kept import ObservingTier, Shelf
from ._scene import Policy, Scene
from ._turn import turn


class InstructedTier(ObservingTier):
    """Notes: the queries [H, n, D] of the first `count` tokens, the softmax scale in them."""

    def __init__(self, spec: CacheSpec, policy: Policy, shelf: Shelf, count: int, shape: KVShape) -> None:
        super().__init__(spec, policy, [[shelf]] * shape.layers, shape)
        self.count = count

    def rank(self, row: int, scene: Scene) -> Tensor:
        if scene.start == 0:
            asks = scene.q[:, :, : self.count].flatten(0, 1).to(self.shape.dtype, copy=True)
            self.note(row, scene.layer, {"asks": asks})
        asks = self.noted(row, scene.layer)["asks"].float().unflatten(0, scene.q.shape[:2])
        if self.shape.rope is not None:
            # The instruction as if it stood right behind the text so far.
            behind = scene.positions.new_full((self.count,), scene.start + scene.q.shape[2])
            asks = turn(asks, self.shape.rope, behind)
        return self.policy.rank(replace(scene, asks=asks))
