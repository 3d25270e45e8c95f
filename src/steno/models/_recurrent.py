"""The hf backend's session over recurrent models (Mamba and hybrids): drafts run on snapshots, kept or dropped.

A recurrent state holds the past in a fixed number of numbers and cannot give a token back. So every node of a chain is
one width-1 step on a copy of the row's state, the state after every node is kept until `commit`, and committing a path
means taking the state after its last node: nothing is replayed, and a chain is bit-identical to width-1 decoding
because it *is* width-1 decoding. It saves no time (transformers' kernels run a longer input only from an empty state);
it makes every chain method correct on these models. Rows run one by one, so they cannot touch each other.
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from steno.core import PAD, Caps, Keeps, Nodes, Want
from steno.core.errors import CapsError

from ._step import HFStep

if TYPE_CHECKING:
    from ._model import HFModel

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

WIDEST = 64
"""Most nodes per row: each keeps a state until the commit."""


class RecurrentSession:
    """A model bound to B rows; see `core.Session`."""

    def __init__(self, model: "HFModel", batch: int, capacity: int) -> None:
        self.model, self.capacity = model, capacity
        self._states = [DynamicCache(config=model.net.config) for _ in range(batch)]
        self._lengths = [0] * batch
        self._last: tuple[Ints, list[list[DynamicCache]]] | None = None

    @property
    def vocab(self) -> int:
        return self.model.vocab

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(self._lengths)

    @property
    def caps(self) -> Caps:
        return Caps(
            tree=False, crop=False, fork=True, embeds=self.model.embeds, hidden=self.model.depth > 0, layers=False,
            visible=False, recurrent=True, num_layers=self.model.depth, max_width=WIDEST, context=self.capacity,
            chain_exact=Keeps.BITS, tree_exact=Keeps.NEAR,
        )  # fmt: skip

    def prefill(self, prompts: Sequence[Sequence[int]], *, last: bool = False) -> Floats | None:
        ids = self.model.rows(prompts, self._lengths, self.capacity)
        self._last = None
        out = np.zeros((len(ids), self.vocab), np.float32)
        for b, row in enumerate(ids):
            # Only an empty state takes many tokens at once.
            pieces = [row] if not self._lengths[b] and len(row) else [row[i : i + 1] for i in range(len(row))]
            for piece in pieces:
                logits = self._step(b, self._states[b], piece)[0]
                out[b] = logits[0, -1].float().cpu().numpy()
            self._lengths[b] += len(row)
        return out if last else None

    def forward(self, nodes: Nodes, want: Want = Want()) -> HFStep:
        batch, width = nodes.parents.shape
        if nodes.layers is not None or nodes.visible is not None or nodes.positions is not None:
            raise CapsError(f"{self.model.name} is recurrent: a node sees the whole past and nothing else")
        if want.hidden and not self.model.depth:
            raise CapsError(f"the hidden states of {self.model.name} cannot be told apart from its head")
        if nodes.embeds is not None and not self.model.embeds:
            raise CapsError(f"{self.model.name} takes no input embeddings")
        if width > WIDEST:
            raise CapsError(f"a forest of {width} nodes per row is wider than this session's {WIDEST}")
        real = np.asarray(nodes.parents) != PAD
        counts = real.sum(1)
        if (real != (np.arange(width) < counts[:, None])).any():
            raise ValueError("padding stands at the end of a row")
        if (real & (nodes.parents != np.arange(width) - 1)).any():
            why = "its state follows one path only. Use a drafter of chains, or cut the draft to one"
            raise CapsError(f"{self.model.name} is recurrent, so it cannot verify a draft that branches: {why}.")
        for b, limit in enumerate(self.room()):
            if counts[b] > limit:
                raise ValueError(f"row {b} has room for {limit} tokens, and its forest is {counts[b]} deep")
        tokens = np.where(real, nodes.tokens, 0).astype(np.int64)
        if nodes.embeds is None:
            self.model.check_ids(tokens)
        logits = torch.zeros(batch, width, self.vocab, device=self.model.device, dtype=self.model.net.dtype)
        hidden: dict[int, Tensor] = {}
        after: list[list[DynamicCache]] = []
        for b in range(batch):
            state, row = self._states[b], []
            for w in range(int(counts[b])):
                state = snapshot(state)
                embeds = None if nodes.embeds is None else torch.from_numpy(nodes.embeds[b : b + 1, w : w + 1])
                out, states = self._step(b, state, tokens[b, w : w + 1], embeds, want)
                row.append(state)
                logits[b, w] = out[0, -1]
                for layer, value in states.items():
                    whole = hidden.setdefault(layer, value.new_zeros(batch, width, value.shape[-1]))
                    whole[b, w] = value[0, -1]
            after.append(row)
        self._last = np.asarray(nodes.parents, np.int32), after
        return HFStep(logits if want.logits else None, hidden)

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        if self._last is None:
            raise ValueError("commit needs a forward before it")
        for b, path in enumerate(paths):
            if list(path) != list(range(len(path))) or len(path) > len(self._last[1][b]):
                raise ValueError(f"row {b}: {list(path)} is not a path from the root")
        for b, path in enumerate(paths):
            if path:
                self._states[b] = self._last[1][b][path[-1]]
                self._lengths[b] += len(path)
        self._last = None

    def crop(self, lengths: Sequence[int]) -> None:
        for b, n in enumerate(lengths):
            if not 0 <= n <= self._lengths[b]:
                raise ValueError(f"row {b} holds {self._lengths[b]} tokens, so it cannot be cropped to {n}")
            if 0 < n < self._lengths[b]:
                raise CapsError(
                    f"{self.model.name} is recurrent: its state cannot give tokens back. Fork before, instead."
                )
        for b, n in enumerate(lengths):
            if n == 0:
                self._states[b] = DynamicCache(config=self.model.net.config)
                self._lengths[b] = 0
        self._last = None

    def fork(self, rows: Sequence[int]) -> "RecurrentSession":
        twin = RecurrentSession(self.model, 0, self.capacity)
        twin._states = [snapshot(self._states[r]) for r in rows]
        twin._lengths = [self._lengths[r] for r in rows]
        return twin

    def embed(self, tokens: Ints) -> Floats:
        return self.model.embed(tokens)

    def head(self, hidden: Floats) -> Floats:
        return self.model.head(hidden)

    def room(self) -> tuple[int, ...]:
        return tuple(min(self.capacity - n, WIDEST) for n in self._lengths)

    def cache_bytes(self) -> dict[str, int]:
        held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for s in self._states for t in tensors(s)}
        return {"state": sum(held.values())}

    def _step(
        self,
        row: int,
        state: DynamicCache,
        ids: "npt.NDArray[np.int64]",
        embeds: Tensor | None = None,
        want: Want = Want(),
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Advance `state` in place by `ids`."""
        return self.model.call(torch.from_numpy(ids[None]).to(self.model.device), embeds, want, state)


def snapshot(state: DynamicCache) -> DynamicCache:
    """A copy that later steps on `state` leave alone.

    Recurrent layers are written in place, so their tensors are cloned; attention layers of hybrids make new tensors at
    every step, so sharing the old ones is a snapshot already.
    """
    twin = copy.copy(state)
    twin.layers = []
    for layer in state.layers:
        other = copy.copy(layer)
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            for name, value in vars(layer).items():
                if isinstance(value, dict):
                    fresh = {k: v.clone() if isinstance(v, Tensor) else v for k, v in value.items()}
                    setattr(other, name, fresh)
        twin.layers.append(other)
    return twin


def tensors(state: DynamicCache) -> list[Tensor]:
    """Every tensor a state holds."""
    out: list[Tensor] = []
    for layer in state.layers:
        for value in vars(layer).values():
            out += [v for v in (value.values() if isinstance(value, dict) else [value]) if isinstance(v, Tensor)]
    return out
