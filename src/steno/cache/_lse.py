"""Attention in parts: softmax over a union of keys is the log-sum-exp merge of softmaxes over the parts.

A part is (out [..., D], lse [...]); one that sees nothing is (0, -inf) and weighs nothing.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Part = tuple[Tensor, Tensor]


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None, log_counts: Tensor | None = None) -> Part:
    """The part of q [..., N, D], the softmax scale already in it, over k and v [..., T, D].

    `seen` is bool and broadcasts to [..., N, T]; None: all. `log_counts` [..., T] is the logarithm of how many equal
    tokens a key stands for; None: one.
    """
    scores = q @ k.mT
    if log_counts is not None:
        scores += log_counts.unsqueeze(-2)
    if seen is not None:
        scores = scores.masked_fill_(~seen, -torch.inf)
    top = _finite(scores.amax(-1, keepdim=True))
    p = scores.sub_(top).exp_()
    total = p.sum(-1, keepdim=True)
    out = (p @ v).div_(_positive(total))
    return out, total.log_().add_(top).squeeze(-1)


def merge(parts: Sequence[Part]) -> Part:
    """One part from several (at least one) over disjoint keys."""
    if len(parts) == 1:
        return parts[0]
    lse = torch.stack([part[1] for part in parts])
    top = _finite(lse.amax(0))
    weights = lse.sub_(top).exp_()
    total = weights.sum(0)
    shares = weights.div_(_positive(total)).unsqueeze(-1)
    out = sum((part[0] * share for part, share in zip(parts, shares, strict=True)), torch.zeros_like(parts[0][0]))
    return out, total.log_().add_(top)


def _finite(top: Tensor) -> Tensor:
    # exp(-inf - -inf) is NaN; with 0 in place of an infinite maximum it is 0.
    return top.masked_fill(top == -torch.inf, 0.0)


def _positive(total: Tensor) -> Tensor:
    return total.masked_fill(total == 0, 1.0)
