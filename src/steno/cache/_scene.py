"""What a policy sees when tokens join a tier, and the policy itself: a rank for each token.

Shapes: S candidates (tokens held or joining), N open tokens, R query heads that share a key head.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

DROP = -torch.inf
"""The rank of a token that must not stay whatever room there is; as many tokens in every head must have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A seal point of one row and layer.

    keys       [G, S, D] of the candidates, those held as they are read, in float32
    positions  [G, S]
    past       [G, S] what the policy returned for them at the last seal point, 0 for new ones
    q          [G, R, N, D] queries of the open tokens, the softmax scale in them; R heads share a key head
    near       [G, N, D] keys of the open tokens
    start      position of the first open token
    sealing    how many of the open tokens join now: the newest `sealing` candidates
    log_counts [G, S] the logarithm of how many tokens a candidate stands for
    asks       [G, R, n, D] queries that the tier kept, as if asked behind the open tokens; None: it keeps none
    """

    layer: int
    keys: Tensor
    positions: Tensor
    past: Tensor
    q: Tensor
    near: Tensor
    start: int
    sealing: int
    log_counts: Tensor
    asks: Tensor | None = None

    def attention(self, first: int, last: int) -> Tensor:
        """[G, R, last - first, S]: what the open tokens [first, last) give each candidate of all they may see."""
        q = self.q[:, :, first:last]
        groups, share, count, dim = q.shape
        asked = torch.arange(self.start + first, self.start + last, device=q.device)
        rest = torch.arange(self.start + self.sealing, self.start + self.q.shape[2], device=q.device)
        keys = torch.cat([self.keys, self.near[:, self.sealing :]], 1)
        where = torch.cat([self.positions, rest.expand(groups, -1)], 1)
        scores = (q.reshape(groups, -1, dim) @ keys.mT).view(groups, share, count, -1)
        scores[..., : self.keys.shape[1]] += self.log_counts[:, None, None]
        scores = scores.masked_fill_(where[:, None, None] > asked[:, None], -torch.inf)
        return scores.softmax(-1)[..., : self.keys.shape[1]]


class Policy(Protocol):
    """Ranks candidates; `remembers` where it wants its last ranks back as `Scene.past`."""

    @property
    def remembers(self) -> bool: ...

    def rank(self, scene: Scene) -> Tensor:
        """[G, S] in float32: of each head the highest stay; of equals the older."""
        ...
