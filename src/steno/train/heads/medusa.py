"""Medusa's heads: a residual block each, before the model's own output projection (`decode.draft.medusa`)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from steno.train.heads.base import Frozen, Part, level
from steno.train.heads.recipe import Shape


class Net(Part):
    """`blocks` [D, M, M] start at zero, `outs` [D, M, M] as the identity: an untrained head says the model's guess."""

    def __init__(self, frozen: Frozen, shape: Shape) -> None:
        super().__init__(frozen, shape)
        self.blocks = nn.Parameter(torch.zeros(shape.depth, frozen.width, frozen.width))
        self.outs = nn.Parameter(torch.eye(frozen.width).repeat(shape.depth, 1, 1))

    def states(self, hidden: Mapping[int, Tensor], ids: Tensor) -> Tensor:
        last = level(hidden[self.reads[0]])[:, : ids.shape[1] - self.shape.depth - 1, None]
        inner = last + silu(torch.einsum("btxm,dnm->btdn", last, self.blocks))
        return torch.einsum("btdm,dnm->btdn", inner, self.outs)
