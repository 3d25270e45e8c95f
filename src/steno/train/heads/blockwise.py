"""Blockwise decoding's heads: a feed-forward layer each, with a residual connection (`decode.draft.blockwise`)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from steno.train.heads.base import Frozen, Part, level
from steno.train.heads.recipe import Shape


class Net(Part):
    """`rise` [D, F, M] and `fall` [D, M, F], which starts at zero; F is `inner`, the model's width by default."""

    def __init__(self, frozen: Frozen, shape: Shape) -> None:
        super().__init__(frozen, shape)
        inner = shape.inner or frozen.width
        self.rise = nn.Parameter(torch.randn(shape.depth, inner, frozen.width) * frozen.width**-0.5)
        self.fall = nn.Parameter(torch.zeros(shape.depth, frozen.width, inner))

    def states(self, hidden: Mapping[int, Tensor], ids: Tensor) -> Tensor:
        last = level(hidden[self.reads[0]])[:, : ids.shape[1] - self.shape.depth - 1, None]
        inner = torch.relu(torch.einsum("btxm,dfm->btdf", last, self.rise))
        return last + torch.einsum("btdf,dmf->btdm", inner, self.fall)
