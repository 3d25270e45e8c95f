"""Hydra's heads: each reads the state and the tokens drafted before its own (`decode.draft.hydra`)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from steno.train.heads.base import Frozen, Part, level
from steno.train.heads.recipe import Shape


class Net(Part):
    """`reads_state` [D, F, M], `reads_tokens_d` [F, d * M] and `outs` [D, M, F]: the two layers of each head's MLP.

    F is `inner`, twice the model's width by default. The first layer is cut in two, because what the state adds to it
    is the same for every path of a tree.
    """

    def __init__(self, frozen: Frozen, shape: Shape) -> None:
        super().__init__(frozen, shape)
        width = frozen.width
        inner = shape.inner or 2 * width
        self.reads_state = nn.Parameter(torch.randn(shape.depth, inner, width) * width**-0.5)
        self.reads_tokens = nn.ParameterList(
            nn.Parameter(torch.randn(inner, d * width) * (d * width) ** -0.5) for d in range(1, shape.depth + 1)
        )
        self.outs = nn.Parameter(torch.zeros(shape.depth, width, inner))

    def states(self, hidden: Mapping[int, Tensor], ids: Tensor) -> Tensor:
        depth = self.shape.depth
        count = ids.shape[1] - depth - 1
        last = level(hidden[self.reads[0]])[:, :count]
        embeds = level(self.frozen.embed[ids])
        out: list[Tensor] = []
        for d in range(depth):
            tokens = torch.cat([embeds[:, 1 + i : 1 + i + count] for i in range(d + 1)], -1)
            inner = silu(last @ self.reads_state[d].T + tokens @ self.reads_tokens[d].T)
            out.append(last + inner @ self.outs[d].T)
        return torch.stack(out, 2)
