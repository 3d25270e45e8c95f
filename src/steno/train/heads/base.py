"""The protocol of a trained part, and the frozen model it is trained on.

Shape legend: B rows, T tokens of a row, N places that are scored, D depth of the draft, M model width, V vocabulary.

Place i of a row holds the state after its token i. The model's own guess there is token i + 1, which is the pending
token when a draft is made; the part guesses token i + 1 + d at depth d = 1, ..., D.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steno.train.heads.recipe import Shape

EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """What of the model is handed to a part.

    embed   [V, M] input embeddings
    head    [..., M] last hidden states to [..., V] logits; gradients flow to the states
    layers  number of layers: the index of the last hidden state
    """

    embed: Tensor
    head: Callable[[Tensor], Tensor]
    layers: int

    @property
    def width(self) -> int:
        return int(self.embed.shape[1])


class Part(nn.Module):
    """A trained part. Its parameters, by name, are what the adapter holds.

    reads  layers whose hidden states it works on
    """

    def __init__(self, frozen: Frozen, shape: Shape) -> None:
        super().__init__()
        # In a tuple, so that no parameter of the model becomes one of the part.
        self._held = (frozen,)
        self.shape = shape
        self.reads: tuple[int, ...] = (frozen.layers,)

    @property
    def frozen(self) -> Frozen:
        return self._held[0]

    @abstractmethod
    def states(self, hidden: Mapping[int, Tensor], ids: Tensor) -> Tensor:
        """States [B, T - D - 1, D, M] whose projection guesses at depth d + 1, from hidden [B, T, M] and ids [B, T]."""

    def guesses(self, hidden: Mapping[int, Tensor], ids: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Logits [N, D, V] and the tokens [N, D] they should say, for places from `first` on."""
        depth = self.shape.depth
        count = ids.shape[1] - depth - 1
        found = self.states(hidden, ids)[:, first:count]
        wanted = torch.stack([ids[:, first + 1 + d : count + 1 + d] for d in range(1, depth + 1)], -1)
        return self.frozen.head(found.flatten(0, 1)), wanted.flatten(0, 1)

    def loss(self, hidden: Mapping[int, Tensor], ids: Tensor, first: int) -> Tensor:
        """Mean cross entropy over places and depths, each depth weighing `decay` of the one above."""
        logits, wanted = self.guesses(hidden, ids, first)
        each = nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
        depths = self.shape.decay ** torch.arange(wanted.shape[1])
        return (each.reshape(wanted.shape).mean(0) * depths).sum()


def level(hidden: Tensor) -> Tensor:
    """States [..., M] at root mean square 1, which is where a part meets them: layers differ in scale by magnitudes."""
    return hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + EPS)
