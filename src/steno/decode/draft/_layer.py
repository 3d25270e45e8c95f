"""A small decoder layer over (state, token) pairs in numpy: the text's keys and values, and a drafted tree behind them.

Legend: n pairs that run together, T pairs of the text, H heads, D width of a head, M model width.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ..base import Floats, Ints
from ._trained import level, silu, single

HEAD = 64
"""Width of an attention head, where that divides the model's; else there is one head."""


class Text:
    """Keys and values [H, T, D] of a text's pairs, `size` of them, and the last pair [M] as the layer joins it."""

    def __init__(self) -> None:
        self.size = 0
        self.keys: Floats = np.zeros((0, 0, 0), np.float32)
        self.values: Floats = self.keys
        self.last: Floats | None = None

    def append(self, keys: Floats, values: Floats) -> None:
        """`keys` and `values` [H, n, D] behind the others."""
        end = self.size + keys.shape[1]
        if end > self.keys.shape[1]:
            self.keys, self.values = (_longer(old, new, end) for old, new in ((self.keys, keys), (self.values, values)))
        self.keys[:, self.size : end] = keys
        self.values[:, self.size : end] = values
        self.size = end


class Branches:
    """Drafted pairs behind a text.

    levels   keys and values [H, n, D] by depth
    lineage  [n, depth] per node of the last level its ancestor's place in each level, itself last
    states   [n, M] of the last level, None before the first
    """

    def __init__(self, text: Text) -> None:
        self.text = text
        self.levels: list[tuple[Floats, Floats]] = []
        self.lineage: Ints = np.zeros((1, 0), np.int32)
        self.states: Floats | None = None


class Layer:
    """The trained layer in numpy; names as in the adapter."""

    def __init__(self, weights: Mapping[str, Floats]) -> None:
        self.weights = weights
        width = len(weights["query"])
        self.heads = width // HEAD if width % HEAD == 0 else 1
        self.slopes = (2.0 ** (-8.0 * np.arange(1, self.heads + 1) / self.heads)).astype(np.float32)[:, None, None]

    def join(self, states: Floats, embeds: Floats) -> Floats:
        """Pairs [n, M] of states and the tokens after them."""
        return np.concatenate([level(states), level(embeds)], 1) @ self.weights["join"].T

    def extend(self, text: Text, joined: Floats) -> None:
        """Pairs of the text itself."""
        normed = level(joined)
        text.append(self._split(normed, "key"), self._split(normed, "value"))
        text.last = joined[-1]

    def after(self, text: Text) -> Floats:
        """State [1, M] behind the text's last pair."""
        assert text.last is not None
        joined = text.last[None]
        weights = self._weights(text, self._split(level(joined), "query"), [], 0)
        return self._finish(joined, weights @ text.values[:, : text.size])

    def branch(self, draft: Branches, parents: Ints, embeds: Floats) -> None:
        """A level more: tokens with `embeds` [n, M] behind the nodes `parents` of the last one."""
        assert draft.states is not None
        joined = self.join(draft.states[parents], embeds)
        normed = level(joined)
        query = self._split(normed, "query")
        draft.levels.append((self._split(normed, "key"), self._split(normed, "value")))
        own = np.arange(len(parents), dtype=np.int32)
        draft.lineage = np.concatenate([draft.lineage[parents], own[:, None]], 1)
        # Each node sees one key per level: its ancestor's, its own in the last.
        lines = [(k[:, at], v[:, at]) for (k, v), at in zip(draft.levels, draft.lineage.T, strict=True)]
        text = draft.text
        weights = self._weights(text, query, [key for key, _ in lines], len(lines))
        mixed = weights[..., : text.size] @ text.values[:, : text.size]
        for i, (_, value) in enumerate(lines):
            mixed += weights[..., text.size + i, None] * value
        draft.states = self._finish(joined, mixed)

    def _weights(self, text: Text, query: Floats, lines: Sequence[Floats], depth: int) -> Floats:
        """Attention [H, n, T + depth] of pairs at `depth` to the text's pairs and to one pair per level."""
        scale = np.float32(query.shape[2] ** -0.5)
        distance = np.arange(text.size + depth - 1, -1, -1, dtype=np.float32)
        told = query @ text.keys[:, : text.size].transpose(0, 2, 1)
        scores = np.concatenate([told, *[(query * key).sum(2, keepdims=True) for key in lines]], 2)
        scores = scores * scale - self.slopes * distance
        scores = np.exp(scores - scores.max(2, keepdims=True)).astype(np.float32, copy=False)
        return scores / scores.sum(2, keepdims=True)

    def _finish(self, joined: Floats, mixed: Floats) -> Floats:
        weights = self.weights
        joined = single(joined + mixed.transpose(1, 0, 2).reshape(joined.shape) @ weights["back"].T)
        return single(joined + silu(level(joined) @ weights["rise"].T) @ weights["fall"].T)

    def _split(self, x: Floats, name: str) -> Floats:
        """[n, M] through a projection to [H, n, D]."""
        return (x @ self.weights[name].T).reshape(len(x), self.heads, -1).transpose(1, 0, 2)


def _longer(old: Floats, new: Floats, size: int) -> Floats:
    """`old` [H, T, D] with room for at least `size`, doubling; `new` gives the shape where nothing was held."""
    out = np.empty((new.shape[0], max(64, 2 * size), new.shape[2]), np.float32)
    out[:, : old.shape[1]] = old if old.size else 0
    return out
