"""The hf backend's session over attention models: forests through the slot cache, one torch call per forward.

Pinned mode. Every forward, prefill included, has B rows of exactly `width` nodes over exactly L slots, the rest being
padding; B and L are fixed by `open`. Kernels choose their summation order by shape, so a token at a given position
after a given past gets the same bits in any column and any row, beside any other rows: chains of drafts are
bit-identical to width-1 decoding on sessions of the same batch and capacity. Siblings in a tree push an ancestor away
from slot == position, which reorders sums: trees are only near (specs: decode, pitfall P4).

Equal shapes are not quite enough. A kernel may treat the last rows of a matrix, or of a thread's share of it, by other
code (MKL does, for fewer than four), and so may elementwise loops. So `HFModel.open` raises a width whose work does
not fall into whole vectors, measures the rest (`lanes_agree`), and promises bits only where the measurement found them.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from steno.core import PAD, ROOT, Caps, Keeps, Nodes, Want, room
from steno.core.errors import CapsError
from steno.core.stretch import Stretch
from steno.core.tier import CacheSpec, Rope

from ._fits import check_load, check_room, check_span
from ._sight import Sight
from ._slots import SlotCache
from ._step import HFStep
from ._stretch import give, read, take, write

if TYPE_CHECKING:
    from ._model import HFModel

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]

WIDEST = 256
"""Most nodes per row of a forward that is not pinned; bounds `room` as well."""

CHUNK = 512
"""Most tokens per row of a prefill forward that is not pinned: bounds the mask."""


class SlotSession:
    """A model bound to B rows; see `core.Session`."""

    def __init__(self, model: "HFModel", capacity: int, form: CacheSpec | None, cache: SlotCache, width: int) -> None:
        self.model, self.capacity, self._form, self._cache, self._width = model, capacity, form, cache, width
        self.chain_exact = Keeps.NEAR
        self._lengths: Counts = np.zeros(cache.batch, np.int64)
        self._sealed: Counts = np.zeros(cache.batch, np.int64)
        self._last: Ints | None = None

    @property
    def vocab(self) -> int:
        return self.model.vocab

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(int(n) for n in self._lengths)

    @property
    def caps(self) -> Caps:
        tier = self._cache.tier
        return Caps(
            tree=True, crop=tier is None, fork=True, embeds=self.model.embeds, hidden=self.model.depth > 0,
            layers=False, visible=True, recurrent=False, num_layers=self.model.depth, max_width=self._width or WIDEST,
            context=self.capacity, chain_exact=self.chain_exact, tree_exact=Keeps.NEAR,
        )  # fmt: skip

    def prefill(self, prompts: Sequence[Sequence[int]], *, last: bool = False) -> Floats | None:
        ids = self.model.rows(prompts, self._lengths, self.capacity)
        self._last = None
        out = np.zeros((len(ids), self.vocab), np.float32) if last else None
        done = np.zeros(len(ids), np.int64)
        total = np.array([len(row) for row in ids])
        while (done < total).any():
            counts = np.minimum(total - done, np.minimum(self.room(), self._width or CHUNK))
            width = int(counts.max())
            tokens = np.zeros((len(ids), width), np.int64)
            for b, row in enumerate(ids):
                tokens[b, : counts[b]] = row[done[b] : done[b] + counts[b]]
            done += counts
            ends = [b for b in range(len(ids)) if counts[b] and done[b] == total[b]] if out is not None else []
            step = self._run(tokens, counts, Want(logits=bool(ends)))
            if out is not None and ends:
                out[ends] = step.picked(ends, [int(counts[b]) - 1 for b in ends])
            self._advance(counts)
        return out

    def forward(self, nodes: Nodes, want: Want = Want()) -> HFStep:
        if nodes.layers is not None:
            raise CapsError("the hf backend runs all layers or none. Use the native backend for a slice of them.")
        if want.hidden and not self.model.depth:
            raise CapsError(f"the hidden states of {self.model.name} cannot be told apart from its head")
        if nodes.embeds is not None and not self.model.embeds:
            raise CapsError(f"{self.model.name} takes no input embeddings")
        parents = np.asarray(nodes.parents, np.int32)
        width = parents.shape[1]
        if width > self.caps.max_width:
            raise CapsError(f"a forest of {width} nodes per row is wider than this session's {self.caps.max_width}")
        real = parents != PAD
        counts = real.sum(1)
        if (real != (np.arange(width) < counts[:, None])).any() or (parents >= np.arange(width)).any():
            raise ValueError("a parent precedes its children, and padding stands at the end of a row")
        lineage, depth = ancestry(parents)
        deepest = np.where(real, depth, -1).max(1, initial=-1) + 1
        for b, limit in enumerate(self.room()):
            if deepest[b] > limit:
                raise ValueError(f"row {b} has room for {limit} tokens, and its forest is {deepest[b]} deep")
        tokens = np.where(real, nodes.tokens, 0).astype(np.int64)
        if nodes.embeds is None:
            self.model.check_ids(tokens)
        if nodes.visible is not None:
            lineage = nodes.visible & real[:, None] & real[:, :, None] | np.eye(width, dtype=bool)
        positions = self._lengths[:, None] + depth if nodes.positions is None else nodes.positions.astype(np.int64)
        step = self._run(tokens, counts, want, lineage=lineage, positions=positions, embeds=nodes.embeds)
        self._last = parents
        return step

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        if self._last is None:
            raise ValueError("commit needs a forward before it")
        for b, path in enumerate(paths):
            for up, node in zip((ROOT, *path), path, strict=False):
                if not 0 <= node < self._last.shape[1] or self._last[b, node] != up:
                    raise ValueError(f"row {b}: {list(path)} is not a path from the root")
        counts = np.array([len(path) for path in paths])
        if counts.any():
            self._cache.move(self._lengths - self._sealed, paths)
        self._advance(counts)
        self._last = None

    @torch.inference_mode()
    def crop(self, lengths: Sequence[int]) -> None:
        for b, n in enumerate(lengths):
            if not 0 <= n <= self._lengths[b]:
                raise ValueError(f"row {b} holds {self._lengths[b]} tokens, so it cannot be cropped to {n}")
            if n and self._form is not None and self._form.due(n) != self._sealed[b]:
                raise CapsError(f"row {b} has {self._sealed[b]} tokens sealed, so it cannot be cropped to {n}")
        for b, n in enumerate(lengths):
            if self._cache.tier is not None:
                self._cache.tier.crop(b, n)
            self._lengths[b] = n
            self._sealed[b] = min(self._sealed[b], n)
        self._last = None

    def fork(self, rows: Sequence[int]) -> "SlotSession":
        twin = SlotSession(self.model, self.capacity, self._form, self._cache.fork(rows), self._width)
        twin.chain_exact = self.chain_exact if len(rows) == self._cache.batch else Keeps.NEAR
        twin._lengths, twin._sealed = self._lengths[list(rows)], self._sealed[list(rows)]
        return twin

    def embed(self, tokens: Ints) -> Floats:
        return self.model.embed(tokens)

    def head(self, hidden: Floats) -> Floats:
        return self.model.head(hidden)

    @property
    def stamp(self) -> str:
        form = "" if self._form is None else f"{type(self._form).__module__}.{self._form!r}"
        # A pinned session's bits depend on its shape.
        shape = (self._cache.batch, self.capacity, self._width) if self._width else ()
        return f"{self.model.fingerprint} {form} {shape}"

    @property
    def whole(self) -> bool:
        return self._cache.tier is not None

    @property
    def rope(self) -> Rope | None:
        return self.model.rope

    def save(self, row: int, start: int = 0, stop: int | None = None) -> Stretch:
        return take(self._cache, row, start, check_span(self, row, start, stop), int(self._sealed[row]))

    def load(self, row: int, stretch: Stretch) -> None:
        check_load(self, row, stretch, self.capacity)
        self._sealed[row] = give(self._cache, row, stretch, self._form, self.model)
        self._lengths[row] = stretch.stop
        self._last = None

    def read(self, row: int, start: int = 0) -> tuple[Floats, Floats]:
        return read(self._cache, row, (start, self.lengths[row]), int(self._sealed[row]), self.model)

    def append(self, row: int, keys: Floats, values: Floats) -> None:
        if self._cache.observer is not None:
            raise CapsError("this cache form chooses by queries, and tokens from elsewhere bring none. Prefill them.")
        check_room(row, self.lengths[row], keys.shape[2], self.capacity)
        done, self._last = 0, None
        while done < keys.shape[2]:
            count = min(self.room()[row], keys.shape[2] - done)
            pair = keys[:, :, done : done + count], values[:, :, done : done + count]
            write(self._cache, row, int(self._lengths[row] - self._sealed[row]), pair, self.model)
            counts = np.zeros(self._cache.batch, np.int64)
            counts[row] = count
            self._advance(counts)
            done += count

    def room(self) -> tuple[int, ...]:
        left = [min(self.capacity - int(n), WIDEST) for n in self._lengths]
        form = self._form
        if form is None:
            return tuple(left)
        return tuple(room(form, int(n), most) if most else 0 for n, most in zip(self._lengths, left, strict=True))

    def cache_bytes(self) -> dict[str, int]:
        seen: set[int] = set()
        out: dict[str, int] = {}
        for part, tensors in self._cache.storages().items():
            fresh = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
            out[part] = sum(size for place, size in fresh.items() if place not in seen)
            seen |= fresh.keys()
        return out

    @torch.inference_mode()
    def lanes_agree(self) -> bool:
        """Whether every row and column of this empty session's forwards gives the same bits, measured on noise.

        All rows hold one random past, as long as the open buffer takes, and one random text behind it; each token of
        the text is run in one column and again in the column before it.
        """
        batch, form = self._cache.batch, self._form
        top = self.capacity if form is None else max(n for n in range(self.capacity) if not form.due(n)) + 1
        count = min(self._width, top)
        rng = np.random.default_rng(0)
        parents = np.broadcast_to(np.arange(-1, count - 1, dtype=np.int32), (batch, count))
        text = rng.integers(0, self.vocab, count, dtype=np.int32)
        self.forward(Nodes(tokens=np.broadcast_to(text, (batch, count)), parents=parents))
        seed = torch.Generator().manual_seed(0)
        agree = True
        # Few bits hide most differences, so look more often.
        for _ in range(2 if self.model.net.dtype == torch.float32 else 4):
            for layer in self._cache.live():
                for held in layer.pair():
                    held.copy_(torch.randn(held.shape[1:], generator=seed).expand(held.shape))
            self._cache.high[:] = self._cache.size
            self._lengths[:] = top - count
            tokens = np.broadcast_to(rng.integers(0, self.vocab, count, dtype=np.int32), (batch, count))
            first = self.forward(Nodes(tokens=tokens, parents=parents)).logits
            agree = agree and bool((first == first[:1]).all())
            if count > 1:
                self.commit([[0]] * batch)
                second = self.forward(Nodes(tokens=tokens[:, 1:], parents=parents[:, :-1])).logits
                agree = agree and bool((second == first[:, 1:]).all())
        for layer in self._cache.live():
            for held in layer.pair():
                held.zero_()
        self._cache.high[:] = 0
        self._lengths[:] = 0
        self._last = None
        return agree

    def kv_shape(self) -> tuple[int, int] | None:
        """(key heads, head width), where they are the same in all layers."""
        live = self._cache.live()
        shapes = {(k.shape[1], k.shape[3], v.shape[1], v.shape[3]) for k, v in (layer.pair() for layer in live)}
        if len(live) < len(self._cache.layers) or len(shapes) != 1:
            return None
        groups, dim, *other = shapes.pop()
        return (groups, dim) if other == [groups, dim] else None

    def _run(
        self,
        tokens: npt.NDArray[np.int64],
        counts: Counts,
        want: Want,
        *,
        lineage: "npt.NDArray[np.bool_] | None" = None,
        positions: "npt.NDArray[np.int64] | None" = None,
        embeds: Floats | None = None,
    ) -> HFStep:
        """One forward of `counts` [B] nodes per row: chains where no lineage [B, W, W] is given."""
        batch, asked = tokens.shape
        width = self._width or max(asked, 1)
        columns = np.arange(width)
        real = columns < counts[:, None]
        chosen = self._lengths[:, None] + np.arange(asked) if positions is None else positions
        # Padding sees only itself, at a position that exists (learned position tables end somewhere).
        where = np.minimum(np.repeat(self._lengths[:, None], width, 1), self.model.context - 1)
        where[:, :asked] = np.where(real[:, :asked], chosen, where[:, :asked])
        visible = np.broadcast_to(np.eye(width, dtype=bool), (batch, width, width)).copy()
        if lineage is None:
            visible |= np.tri(width, dtype=bool) & real[:, None]
        else:
            visible[:, :asked, :asked] |= lineage
        starts = self._lengths - self._sealed
        device = self.model.device
        sight = Sight(
            committed=torch.from_numpy(starts.copy()).to(device),
            origin=torch.from_numpy(self._sealed.copy()).to(device),
            positions=torch.from_numpy(where).to(device),
            lineage=torch.from_numpy(visible).to(device),
            view=self._cache.size if self._width else int(starts.max()) + width,
            sees=self._form.sees if self._form is not None else None,
        )
        ids = np.zeros((batch, width), np.int64)
        ids[:, :asked] = tokens
        self._cache.begin(sight, starts, ids)
        wide: Tensor | None = None
        if embeds is not None:
            wide = torch.zeros(batch, width, embeds.shape[-1])
            wide[:, :asked] = torch.from_numpy(np.where(real[:, :asked, None], embeds, 0))
        return self.model.run(torch.from_numpy(ids).to(device), wide, sight, self._cache, want, asked=asked)

    def _advance(self, counts: Counts) -> None:
        """Count freshly committed tokens and seal what is due."""
        self._lengths += counts
        if self._form is None:
            return
        for b, length in enumerate(self.lengths):
            count = self._form.due(length) - int(self._sealed[b])
            if count > 0:
                self._cache.seal(b, count, length - int(self._sealed[b]))
                self._sealed[b] += count


def ancestry(parents: Ints) -> "tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]":
    """(lineage [B, W, W]: ancestor or self, depth [B, W]) of forests whose parents precede their children."""
    batch, width = parents.shape
    lineage = np.broadcast_to(np.eye(width, dtype=bool), (batch, width, width)).copy()
    depth = np.zeros((batch, width), np.int64)
    rows = np.arange(batch)
    for node in range(width):
        child = parents[:, node] >= 0
        up = np.where(child, parents[:, node], 0)
        lineage[:, node] |= lineage[rows, up] & child[:, None]
        depth[:, node] = np.where(child, depth[rows, up] + 1, 0)
    return lineage, depth
