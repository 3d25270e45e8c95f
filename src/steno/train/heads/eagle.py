"""EAGLE's draft layer: a decoder layer over (state, next token) pairs continues the states (`decode.draft.eagle`).

Trained on its own continuations: at depth d it reads the state that it made at depth d - 1, as it will when drafting.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from steno.train.heads.base import Frozen, Part, level
from steno.train.heads.recipe import Shape

HEAD = 64


class Net(Part):
    """`join` [M, 2 M] merges state and embedding; `query`, `key`, `value`, `back` [M, M]; `rise` [F, M], `fall` [M, F].

    Heads are `HEAD` wide where that divides the width, else there is one. F is `inner`, twice the width by default.
    """

    def __init__(self, frozen: Frozen, shape: Shape) -> None:
        super().__init__(frozen, shape)
        width = frozen.width
        inner = shape.inner or 2 * width
        self.heads = width // HEAD if width % HEAD == 0 else 1
        self.join = nn.Parameter(torch.cat([torch.eye(width), torch.randn(width, width) * 0.1 * width**-0.5], 1))
        self.query, self.key, self.value = (
            nn.Parameter(torch.randn(width, width) * width**-0.5) for _ in range(3)
        )  # fmt: skip
        self.back = nn.Parameter(torch.zeros(width, width))
        self.rise = nn.Parameter(torch.randn(inner, width) * width**-0.5)
        self.fall = nn.Parameter(torch.zeros(width, inner))

    def states(self, hidden: Mapping[int, Tensor], ids: Tensor) -> Tensor:
        depth = self.shape.depth
        count = ids.shape[1] - depth - 1
        state = hidden[self.reads[0]][:, :count]
        embeds = self.frozen.embed[ids]
        own = torch.arange(count)
        past = own[:, None] - own
        keys: list[Tensor] = []
        values: list[Tensor] = []
        out: list[Tensor] = []
        for d in range(depth):
            joined = torch.cat([level(state), level(embeds[:, 1 + d : 1 + d + count])], -1) @ self.join.T
            normed = level(joined)
            query, key, value = (self._split(normed @ w.T) for w in (self.query, self.key, self.value))
            keys.append(key)
            values.append(value)
            # Over the pairs of the text, and over its own continuation: one key per depth, on the diagonal.
            slopes = slopes_of(self.heads)[:, None, None]
            scale = query.shape[-1] ** -0.5
            text = query @ keys[0].transpose(2, 3) * scale - slopes * (past + d)
            text = text.masked_fill(past < 0, -torch.inf)
            drafted = [(query * k).sum(-1, keepdim=True) * scale - slopes * (d - i) for i, k in enumerate(keys[1:], 1)]
            weights = torch.cat([text, *drafted], -1).float().softmax(-1).to(value.dtype)
            mixed = weights[..., :count] @ values[0]
            for i, v in enumerate(values[1:]):
                mixed = mixed + weights[..., count + i, None] * v
            joined = joined + mixed.transpose(1, 2).flatten(2) @ self.back.T
            state = joined + silu(level(joined) @ self.rise.T) @ self.fall.T
            out.append(state)
        return torch.stack(out, 2)

    def _split(self, x: Tensor) -> Tensor:
        """[B, T, M] to [B, H, T, M / H]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def slopes_of(heads: int) -> Tensor:
    """[H] how fast each head's attention falls with distance, as in ALiBi: 2^(-8 h / H) for h = 1, ..., H."""
    return 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)
