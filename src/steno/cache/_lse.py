"""Attention in parts: softmax over a union of keys is the log-sum-exp merge of softmaxes over the parts.

A part is (out [..., D], lse [...]); one that sees nothing is (0, -inf) and weighs nothing.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Part = tuple[Tensor, Tensor]


def weights(scores: Tensor) -> tuple[Tensor, Tensor]:
    """(p, lse) of scores [..., S]: p is the softmax, 0 where every score is -inf, and lse [...] their log-sum-exp."""
    top = _finite(scores.amax(-1, keepdim=True))
    p = scores.sub(top).exp_()
    total = p.sum(-1, keepdim=True)
    lse = total.log().add_(top).squeeze(-1)
    return p.div_(_positive(total)), lse


def merge(parts: Sequence[Part]) -> Part:
    """One part from several over disjoint keys, at least one. Order decides nothing but the last bit."""
    if len(parts) == 1:
        return parts[0]
    lse = torch.stack([part[1] for part in parts])
    share, total = weights(lse.movedim(0, -1))
    out = parts[0][0] * share[..., 0, None]
    for index, part in enumerate(parts[1:], 1):
        out.addcmul_(part[0], share[..., index, None])
    return out, total


def _finite(top: Tensor) -> Tensor:
    # exp(-inf - -inf) is NaN; with 0 in place of an infinite maximum it is 0.
    return top.masked_fill(top == -torch.inf, 0.0)


def _positive(total: Tensor) -> Tensor:
    return total.masked_fill(total == 0, 1.0)
