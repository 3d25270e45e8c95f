"""What a model's queries, keys and values are on given texts, for forms that are fitted to a model once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from steno.core import KVShape, Model, Tier
from steno.core.tier import Rope

from ._dense import DenseForm
from ._paged import PagedTier
from ._turn import turn


class Seen(NamedTuple):
    """One layer: q [H, T, D] with the softmax scale in them, k, v [G, T, D], all in float32 and turned by the model."""

    q: Tensor
    k: Tensor
    v: Tensor
    rope: Rope | None = None

    def before_rotation(self) -> Tensor:
        """k turned back, where it is known how the model turns it."""
        if self.rope is None:
            return self.k
        return turn(self.k, self.rope, torch.arange(self.k.shape[1], device=self.k.device), back=True)


class _Tier(PagedTier):
    """Keeps everything as it is, queries too."""

    queries: list[Tensor]

    def observe(self, row: int, layer: int, q: Tensor, k: Tensor) -> None:
        self.queries.append(q.float())


@dataclass(frozen=True)
class _Witness:
    """A form that seals a whole text at its last token, and remembers the tiers it opened."""

    length: int
    opened: list[_Tier] = field(default_factory=list[_Tier])

    def due(self, length: int) -> int:
        return self.length if length >= self.length else 0

    def sees(self, query: Tensor, key: Tensor) -> None:
        return None

    def open(self, shape: KVShape) -> Tier:
        tier = _Tier(self, DenseForm(), shape)
        tier.queries = []
        self.opened.append(tier)
        return tier

    def layout(self, head_dim: int) -> None:
        return None


def witness(model: Model, texts: Sequence[Sequence[int]]) -> Iterator[list[Seen]]:
    """The layers of each text."""
    for text in texts:
        form = _Witness(len(text))
        model.open(1, len(text) + 1, form).prefill([text])
        tier = form.opened[-1]
        layers = [tier.materialise(layer) for layer in range(tier.shape.layers)]
        rope = tier.shape.rope
        yield [Seen(q, k[0], v[0], rope) for q, (k, v, _) in zip(tier.queries, layers, strict=True)]


def received(seen: Seen) -> Tensor:
    """[T]: the attention each token gets from all queries, by the mean of the heads, as a share of all there is."""
    groups, tokens, _ = seen.k.shape
    scores = seen.q.unflatten(0, (groups, -1)) @ seen.k[:, None].mT
    later = torch.ones(tokens, tokens, dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill_(later, -torch.inf).softmax(-1).mean((0, 1, 2))
