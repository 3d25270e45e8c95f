"""The slot cache: the KV of every token at slot == position - sealed, per row, so rows are ragged and none is moved to
align it with another (specs: decode, pitfalls P2 and P3).

Committed tokens fill the slots [0, length - sealed) of a row and the nodes under verification the slots behind them.
What stands behind the nodes of the present forward is never seen, and it is finite: a slot is zero until it is written,
and `high` remembers how far a row was ever written, so leftovers of wider forests are wiped before they come into view
(a masked NaN is still NaN after the product with a zero weight).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from steno.core.errors import CapsError
from steno.core.tier import Observer, Reader, Tier

from ._sight import Handle, Reach, Sight, attend_lse


class SlotLayer(CacheLayerMixin):
    """KV of one layer, allocated when its shape is first seen; `queries` too where the tier observes them."""

    is_sliding = False
    queries: Tensor | None = None

    def __init__(self, owner: "SlotCache", index: int) -> None:
        super().__init__()
        self.owner, self.index = owner, index

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        batch, size = self.owner.batch, self.owner.size
        self.keys = key_states.new_zeros(batch, key_states.shape[1], size, key_states.shape[3])
        self.values = value_states.new_zeros(batch, value_states.shape[1], size, value_states.shape[3])
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor | Handle, Tensor | None]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        slots, view = self.owner.slots, self.owner.sight.view
        for held, new in ((self.keys, key_states), (self.values, value_states)):
            held.scatter_(2, slots[:, None, :, None].expand(new.shape), new)
        return self.owner.past(self.index, self.keys[:, :, :view], self.values[:, :, :view])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.owner.sight.view, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return self.owner.size

    def pair(self) -> tuple[Tensor, Tensor]:
        """(keys, values), each [B, G, S, D]."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def watch(self, q: Tensor, scale: float) -> None:
        """Keep the queries [B, H, W, D] of a forward beside their keys."""
        if self.queries is None:
            self.queries = q.new_zeros(q.shape[0], q.shape[1], self.owner.size, q.shape[3])
        self.queries.scatter_(2, self.owner.slots[:, None, :, None].expand(q.shape), q * scale)

    def buffers(self) -> list[Tensor]:
        """Everything with a place per slot, [B, heads, S, D] each."""
        return [*self.pair(), *([] if self.queries is None else [self.queries])]


class SlotCache(Cache):
    """KV of all layers of B rows; `size` slots per row.

    `handles`: the model passes a Handle on to the registered attention function; without it sealed tokens are
    materialised in front of the open ones at every forward.
    """

    sight: Sight
    slots: Tensor

    def __init__(self, *, batch: int, layers: int, size: int, capacity: int, tier: Tier | None, handles: bool) -> None:
        super().__init__(layers=[SlotLayer(self, i) for i in range(layers)])
        self.batch, self.size, self.capacity, self.tier, self.handles = batch, size, capacity, tier, handles
        self.high = np.zeros(batch, np.int64)
        self.observer = tier if isinstance(tier, Observer) else None
        self.reader = tier if isinstance(tier, Reader) else None
        self.ids = torch.zeros(batch, size if self.reader is not None else 0, dtype=torch.int32)

    def live(self) -> list[SlotLayer]:
        """The layers that hold KV."""
        return [layer for layer in self.layers if isinstance(layer, SlotLayer) and layer.is_initialized]

    @torch.inference_mode()
    def begin(self, sight: Sight, starts: np.ndarray, ids: np.ndarray) -> None:
        """Make the buffer ready for a forward of the nodes `ids` [B, W] from the slots `starts` [B]."""
        width = ids.shape[1]
        self.sight = sight
        self.slots = sight.committed[:, None] + torch.arange(width, device=sight.committed.device)
        self.reserve(int(starts.max()) + width)
        ends = starts + width
        if self.reader is not None:
            self.ids.scatter_(1, self.slots.cpu(), torch.from_numpy(ids).int())
        if (self.high > ends).any():
            self._wipe(ends)
        self.high = ends
        if self.tier is not None and not self.handles:
            sight.sealed = self._padded(0)[2]

    def past(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor | Handle, Tensor | None]:
        """What the attention of layer `index` gets: the open buffer, and what is sealed behind it."""
        tier, sight = self.tier, self.sight
        if tier is None:
            return keys, values
        if not self.handles:
            if self.observer is not None:
                raise CapsError("this cache form needs to see queries, which this model's attention keeps to itself")
            k, v, where = self._padded(index)
            if sight.sealed is None or not torch.equal(where, sight.sealed):
                raise CapsError(
                    "this cache form keeps other tokens in other layers, and this model needs one mask for all"
                )
            return torch.cat([k.to(keys.dtype), keys], 2), torch.cat([v.to(values.dtype), values], 2)

        def behind(q: Tensor, reach: Reach, scale: float) -> tuple[Tensor, Tensor]:
            if not reach.binds(self.capacity):
                return tier.attend(index, q, sight.positions, scale)
            k, v, where = self._padded(index)
            if where.ndim > 2:
                raise CapsError(
                    "this cache form keeps other tokens in other heads, and this model looks through windows"
                )
            return attend_lse(q, k, v, sight.beyond(where, reach), scale)

        layer = self.layers[index]
        assert isinstance(layer, SlotLayer)
        return Handle(keys, values, behind, layer.watch if self.observer is not None else None), None

    @torch.inference_mode()
    def move(self, starts: np.ndarray, paths: Sequence[Sequence[int]]) -> None:
        """Bring the nodes of `paths`, which start at the slots `starts`, to the first slots there."""
        depth = max(map(len, paths))
        plan = np.tile(np.arange(depth), (self.batch, 1))
        for b, path in enumerate(paths):
            plan[b, : len(path)] = path
        if (plan == np.arange(depth)).all():
            return
        device = self.slots.device
        source = torch.from_numpy(starts[:, None] + plan).to(device)[:, None, :, None]
        target = torch.from_numpy(starts[:, None] + np.arange(depth)).to(device)[:, None, :, None]
        for layer in self.live():
            for held in layer.buffers():
                shape = (*held.shape[:2], depth, held.shape[3])
                held.scatter_(2, target.expand(shape), held.gather(2, source.expand(shape)))
        if self.reader is not None:
            rows, places = source[:, 0, :, 0].cpu(), target[:, 0, :, 0].cpu()
            self.ids.scatter_(1, places, self.ids.gather(1, rows))

    @torch.inference_mode()
    def seal(self, row: int, count: int, held: int) -> None:
        """Hand the oldest `count` of the `held` open tokens of a row to the tier and shift the rest down."""
        assert self.tier is not None
        if self.reader is not None:
            self.reader.read(row, self.ids[row, :held].clone())
            self.ids[row, : held - count] = self.ids[row, count:held].clone()
        for layer in self.live():
            keys, values = layer.pair()
            if self.observer is not None:
                assert layer.queries is not None
                self.observer.observe(
                    row, layer.index, layer.queries[row, :, :held].clone(), keys[row, :, :held].clone()
                )
            self.tier.seal(row, layer.index, keys[row, :, :count].clone(), values[row, :, :count].clone())
            for buffer in layer.buffers():
                buffer[row, :, : held - count] = buffer[row, :, count:held].clone()

    @torch.inference_mode()
    def fork(self, rows: Sequence[int]) -> "SlotCache":
        """A cache whose row i is a copy of row `rows[i]`."""
        tier = self.tier.fork(rows) if self.tier is not None else None
        twin = SlotCache(
            batch=len(rows), layers=len(self.layers), size=self.size, capacity=self.capacity, tier=tier,
            handles=self.handles,
        )  # fmt: skip
        twin.high = self.high[list(rows)]
        twin.ids = self.ids[list(rows)]
        for mine in self.live():
            layer = twin.layers[mine.index]
            assert isinstance(layer, SlotLayer)
            index = torch.tensor(list(rows), device=mine.pair()[0].device)
            layer.keys, layer.values, *rest = (held.index_select(0, index) for held in mine.buffers())
            layer.queries = rest[0] if rest else None
            layer.is_initialized = True
        return twin

    def storages(self) -> dict[str, list[Tensor]]:
        """Live tensors by part."""
        parts = dict(self.tier.storages()) if self.tier is not None else {}
        parts["open"] = [held for layer in self.live() for held in layer.buffers()]
        if self.reader is not None:
            parts["open"].append(self.ids)
        return parts

    def _padded(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """The tier's tokens, dense and padded to the capacity: a width that no other row can change."""
        assert self.tier is not None
        k, v, where = self.tier.materialise(index)
        short = max(self.capacity - where.shape[-1], 0)
        pad = torch.nn.functional.pad
        return pad(k, (0, 0, 0, short)), pad(v, (0, 0, 0, short)), pad(where, (0, short), value=-1)

    def reserve(self, size: int) -> None:
        """Have at least `size` slots per row."""
        if size <= self.size:
            return
        for layer in self.live():
            short = (0, 0, 0, size - self.size)
            layer.keys, layer.values, *rest = (torch.nn.functional.pad(held, short) for held in layer.buffers())
            layer.queries = rest[0] if rest else None
        if self.reader is not None:
            self.ids = torch.nn.functional.pad(self.ids, (0, size - self.size))
        self.size = size

    def _wipe(self, ends: np.ndarray) -> None:
        """Zero what wider forests left in the slots [ends, high)."""
        low, top = int(ends.min()), int(self.high.max())
        span = np.arange(low, top)
        stale = torch.from_numpy((span >= ends[:, None]) & (span < self.high[:, None]))[:, None, :, None]
        for layer in self.live():
            for held in layer.buffers():
                held[:, :, low:top].masked_fill_(stale.to(held.device), 0)
