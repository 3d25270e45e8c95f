"""Key heads that share a few directions: vectors over all channels of a group of heads, projected and brought back."""

from dataclasses import dataclass

import torch
from torch import Tensor

Parts = dict[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class BasisCodec:
    """A `_grid.Codec`: keys and values [g, n, T, r] in bases [g, h D, r] of orthonormal columns, h heads to a group."""

    keys: Tensor
    values: Tensor
    heads: int

    def encode(self, k: Tensor, v: Tensor) -> Parts:
        return {"keys": self._into(k, self.keys), "values": self._into(v, self.values)}

    def decode(self, parts: Parts) -> tuple[Tensor, Tensor]:
        return self._back(parts["keys"], self.keys), self._back(parts["values"], self.values)

    def _into(self, x: Tensor, basis: Tensor) -> Tensor:
        wide = x.float().unflatten(0, (-1, self.heads)).movedim(1, 3).flatten(3)
        return (wide @ basis[:, None]).to(x.dtype)

    def _back(self, x: Tensor, basis: Tensor) -> Tensor:
        # Block by block: no bit depends on how many blocks are read at once.
        wide = torch.stack([block.float() @ basis.mT for block in x.unbind(1)], 1)
        return wide.unflatten(3, (self.heads, -1)).movedim(3, 1).flatten(0, 1)


def mean_basis(groups: int, heads: int, dim: int, rank: int) -> Tensor:
    """The basis [g, h D, r] whose coordinates are the mean of the heads, times the root of their number."""
    eye = torch.eye(dim)[:, :rank].repeat(heads, 1) / heads**0.5
    return eye.expand(groups, -1, -1)


def principal(second_moment: Tensor) -> Tensor:
    """All directions [..., N, N] of a second moment X^T X [..., N, N], in columns, the one with most of it first."""
    return torch.linalg.eigh(second_moment.double()).eigenvectors.flip(-1).float()
