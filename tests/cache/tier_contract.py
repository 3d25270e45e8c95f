"""The Tier contract as checks that run over any cache form, held against a naive reference.

`Feed` plays the part of a session: it has an endless text per row, commits it in any chunks, and seals what is due. A
naive oracle in float64 computes attention over everything a tier says it holds.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import pytest
import torch
from torch import Tensor

from steno.cache import CacheKnob
from steno.cache._ledger import marginal_bytes, resident_bytes
from steno.cache._paged import PagedTier
from steno.core import KVShape, Tier
from steno.core.errors import CapsError
from steno.core.tier import Observer, Reader, Rope

CPU = torch.device("cpu")


def kv_shape(
    batch: int = 3, layers: int = 2, heads: int = 4, groups: int = 2, dim: int = 8, **other: object
) -> KVShape:
    rope = Rope(frequencies=tuple(100.0 ** (-2 * i / dim) for i in range(dim // 2)))
    settings = {"capacity": 4096, "dtype": torch.float32, "device": CPU, "rope": rope, **other}
    return KVShape(batch=batch, layers=layers, query_heads=heads, key_heads=groups, head_dim=dim, **settings)


def text(seed: int, shape: KVShape, length: int) -> tuple[Tensor, Tensor]:
    """k, v [L, G, T, D]: a function of seed and position alone. Channel 0 of the keys is an outlier."""
    k, v = torch.empty(2, shape.layers, shape.key_heads, length, shape.head_dim).unbind(0)
    for start in range(0, length, 64):
        noise = torch.Generator().manual_seed(seed * 1_000_003 + start)
        block = torch.randn(2, shape.layers, shape.key_heads, 64, shape.head_dim, generator=noise)
        k[:, :, start : start + 64], v[:, :, start : start + 64] = block[:, :, :, : length - start].unbind(0)
    k[..., 0] = k[..., 0] * 4 + 8
    return k.to(shape.dtype), v.to(shape.dtype)


def queries(seed: int, shape: KVShape, length: int) -> Tensor:
    """q [L, H, T, D], the scale in them: like `text`, with likings that last for a few tokens."""
    q = torch.empty(shape.layers, shape.query_heads, length, shape.head_dim)
    for start in range(0, length, 64):
        noise = torch.Generator().manual_seed(seed * 7_000_003 + start)
        block = torch.randn(2, shape.layers, shape.query_heads, 64, shape.head_dim, generator=noise)
        block = block[0] + block[1, :, :, :1]
        q[:, :, start : start + 64] = block[:, :, : length - start]
    return q.to(shape.dtype)


def tokens(seed: int, length: int) -> Tensor:
    """Ids [T] of a text, below 20."""
    return (torch.arange(length) * (2 * seed + 7) + torch.arange(length) ** 2 * 3) % 20


class Stored(Tier, Protocol):
    """What the room's tiers have beyond the protocol."""

    shape: KVShape

    @property
    def page_tokens(self) -> int: ...
    def fork(self, rows: Sequence[int]) -> "Stored": ...
    def state(self) -> tuple[dict[str, Tensor], object]: ...
    def load(self, tensors: dict[str, Tensor], meta: object) -> None: ...
    def adopt(self, row: int, other: Tier) -> None: ...


@dataclass
class Feed:
    """Rows of text on their way through a form."""

    knob: CacheKnob
    shape: KVShape
    seeds: Sequence[int]
    lengths: list[int] = field(default_factory=list)
    tier: Stored | None = None

    def __post_init__(self) -> None:
        self.lengths = self.lengths or [0] * self.shape.batch
        if self.tier is None:
            self.tier = self.knob.open(self.shape)

    @property
    def held(self) -> Stored:
        assert self.tier is not None
        return self.tier

    def grow(self, row: int, length: int) -> None:
        """Commit the tokens of a row up to `length`: in one step, or as a session does where a tier chooses."""
        if not isinstance(self.held, PagedTier):
            for now in range(self.lengths[row] + 1, length + 1):
                if self.knob.due(now) > self.knob.due(now - 1):
                    self._seal(row, now)
        else:
            self._seal(row, length)
        self.lengths[row] = length

    def _seal(self, row: int, length: int) -> None:
        low, high = self.held.sealed[row], self.knob.due(length)
        if high > low:
            k, v = text(self.seeds[row], self.shape, high)
            if isinstance(self.held, Reader):
                self.held.read(row, tokens(self.seeds[row], length)[low:])
            for layer in range(self.shape.layers):
                keys, values = k[layer, :, low:high].clone(), v[layer, :, low:high].clone()
                before = keys.clone(), values.clone()
                if isinstance(self.held, Observer):
                    near = text(self.seeds[row], self.shape, length)[0][layer, :, low:]
                    self.held.observe(row, layer, queries(self.seeds[row], self.shape, length)[layer, :, low:], near)
                self.held.seal(row, layer, keys, values)
                assert torch.equal(keys, before[0])
                assert torch.equal(values, before[1])
                # What was handed over belongs to the session, which will write over it.
                keys.fill_(torch.nan)
                values.fill_(torch.nan)

    def fork(self, rows: Sequence[int]) -> "Feed":
        tier = self.held.fork(rows)
        return Feed(self.knob, tier.shape, [self.seeds[r] for r in rows], [self.lengths[r] for r in rows], tier)

    def ask(self, width: int, salt: int = 0) -> tuple[Tensor, Tensor]:
        """(q [B, H, W, D], positions [B, W]) of nodes that follow the rows."""
        noise = torch.Generator().manual_seed(salt)
        q = torch.randn(self.shape.batch, self.shape.query_heads, width, self.shape.head_dim, generator=noise)
        return q.to(self.shape.dtype), torch.tensor(self.lengths)[:, None] + torch.arange(width)


def digest(tier: Stored, rows: Sequence[int] | None = None) -> list[str]:
    """A hash per row of all that a tier holds for it."""
    out: list[str] = []
    for row in range(tier.shape.batch) if rows is None else rows:
        tensors, meta = tier.fork([row]).state()
        hasher = hashlib.sha256(repr(meta).encode())
        for name, tensor in sorted(tensors.items()):
            hasher.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            hasher.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        out.append(hasher.hexdigest())
    return out


def oracle(
    knob: CacheKnob, tier: Stored, layer: int, q: Tensor, positions: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Softmax attention over `materialise`, query by query, in float64.

    A slot of a tier that folds what it drops may stand for several tokens, and a part of it may have no slots at all.
    """
    k, v, where = tier.materialise(layer)
    counted, beyond = getattr(tier, "counted", None), getattr(tier, "beyond", None)
    extra = counted(layer)[3] if counted else torch.zeros(k.shape[:3])
    batch, heads, width, _ = q.shape
    share = heads // k.shape[1]
    out = torch.zeros(q.shape, dtype=torch.float64)
    lse = torch.full(q.shape[:3], -torch.inf, dtype=torch.float64)
    where = where[:, None].expand(k.shape[:3]) if where.ndim == 2 else where
    for b in range(batch):
        for w in range(width):
            for h in range(heads):
                place = where[b, h // share]
                visible = place >= 0
                rule = knob.sees(positions[b, w].view(1, 1), place[None])
                if rule is not None:
                    visible &= rule[0]
                if visible.any():
                    scores = k[b, h // share][visible].double() @ q[b, h, w].double() * scale
                    scores += extra[b, h // share][visible]
                    lse[b, h, w] = scores.logsumexp(0)
                    out[b, h, w] = scores.softmax(0) @ v[b, h // share][visible].double()
        part = beyond(b, layer, (q[b].float() * scale).view(k.shape[1], -1, q.shape[3])) if beyond else None
        if part is not None:
            more, more_lse = part[0].double().view(q.shape[1:]), part[1].double().view(q.shape[1:3])
            both = torch.logaddexp(lse[b], more_lse)
            out[b] = out[b] * (lse[b] - both).exp()[..., None] + more * (more_lse - both).exp()[..., None]
            lse[b] = both
    return out, lse


def seals(knob: CacheKnob, count: int, most: int = 4096) -> list[int]:
    """The first lengths at which a form seals, at most `count` of them."""
    found = [n for n in range(1, most) if knob.due(n) > knob.due(n - 1)]
    return found[:count]


def lengths_for(knob: CacheKnob) -> list[int]:
    """Ragged rows: several blocks sealed and some open, nothing sealed, one block sealed just now."""
    at = seals(knob, 3) or [20, 30, 40]
    return [at[-1] + 5, 3, at[0]]


def fed(knob: CacheKnob, shape: KVShape) -> Feed:
    feed = Feed(knob, shape, seeds=[1, 2, 3])
    for row, length in enumerate(lengths_for(knob)):
        feed.grow(row, length)
    return feed


def due_grows_and_never_exceeds_the_length(knob: CacheKnob) -> None:
    dues = [knob.due(n) for n in range(4096)]
    assert dues[0] == 0
    assert dues == sorted(dues)
    assert all(due <= n for n, due in enumerate(dues))


def attend_is_softmax_over_what_is_held(knob: CacheKnob) -> None:
    if getattr(knob, "mixes", False):
        # Its own test holds every query against a reference of its own.
        return
    for heads, dtype in ((2, torch.float32), (4, torch.bfloat16), (8, torch.float16)):
        feed = fed(knob, kv_shape(heads=heads, dtype=dtype))
        q, positions = feed.ask(3)
        for layer in range(2):
            out, lse = feed.held.attend(layer, q, positions, 0.35)
            want, want_lse = oracle(knob, feed.held, layer, q, positions, 0.35)
            assert out.dtype == lse.dtype == torch.float32
            torch.testing.assert_close(out.double(), want, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(lse.double(), want_lse, atol=1e-5, rtol=1e-5)


def an_empty_tier_sees_nothing(knob: CacheKnob) -> None:
    feed = Feed(knob, kv_shape(), seeds=[1, 2, 3])
    q, positions = feed.ask(2)
    out, lse = feed.held.attend(1, q, positions, 1.0)
    assert not out.any()
    assert (lse == -torch.inf).all()
    k, v, where = feed.held.materialise(0)
    assert k.shape == v.shape == (3, 2, 0, 8)
    assert where.shape in ((3, 0), (3, 2, 0))
    assert sum(resident_bytes(feed.held.storages()).values()) == 0
    # Rows with nothing sealed beside rows with much: zeros, not NaN.
    feed = fed(knob, kv_shape())
    out, lse = feed.held.attend(0, *feed.ask(2), 1.0)
    assert not out.isnan().any()
    assert not lse.isnan().any()
    assert (lse[1] == -torch.inf).all()


def contents_depend_on_committed_tokens_alone(knob: CacheKnob) -> None:
    """Any chunking, any interleaving of rows, forks and dropped forks on the way: the same bits."""
    shape = kv_shape()
    goals = lengths_for(knob)
    plain = fed(knob, shape)
    want = digest(plain.held)
    for trial in range(4):
        noise = torch.Generator().manual_seed(trial)
        feed = Feed(knob, shape, seeds=[1, 2, 3])
        while feed.lengths != goals:
            row = int(torch.randint(3, (), generator=noise))
            step = int(torch.randint(1, [2, 9, 70, 400][trial], (), generator=noise))
            feed.grow(row, min(goals[row], feed.lengths[row] + step))
            if trial % 2 and int(torch.randint(9, (), generator=noise)) == 0:
                other = feed.fork([2, 0, 1])
                other.grow(1, feed.lengths[0] + 40)
                feed = feed.fork([0, 1, 2])
        assert digest(feed.held) == want
        asked = plain.ask(4)
        for layer in range(2):
            got, truth = feed.held.attend(layer, *asked, 0.35), plain.held.attend(layer, *asked, 0.35)
            assert torch.equal(got[0], truth[0])
            assert torch.equal(got[1], truth[1])


def sealed_tokens_never_change(knob: CacheKnob) -> None:
    """A token keeps its bits as long as it is held, and never comes back.

    Where a form ages tokens (`ages`) it may change them; where it holds more than it shows (`recalls`) they come back.
    """
    feed = Feed(knob, kv_shape(batch=1), seeds=[4])
    before: dict[tuple[int, int], Tensor] = {}
    sealed = 0
    for length in seals(knob, 4):
        feed.grow(0, length)
        k, v, where = feed.held.materialise(1)
        where = where[:, None].expand(k.shape[:3]) if where.ndim == 2 else where
        now: dict[tuple[int, int], Tensor] = {}
        for g in range(2):
            held = where[0, g][where[0, g] >= 0].tolist()
            assert len(set(held)) == len(held)
            now |= {(g, p): torch.stack([k[0, g, s], v[0, g, s]]) for s, p in enumerate(where[0, g].tolist()) if p >= 0}
        assert {p for _, p in now} <= set(range(feed.held.sealed[0]))
        for key in now:
            assert key in before or key[1] >= sealed or getattr(knob, "recalls", False)
            if key in before and not getattr(knob, "ages", False):
                assert torch.equal(now[key], before[key])
        before, sealed = now, feed.held.sealed[0]


def a_row_is_the_row_alone(knob: CacheKnob) -> None:
    """Neither neighbours nor the column a node stands in change a bit: what pinned sessions lean on."""
    feed = fed(knob, kv_shape())
    q, positions = feed.ask(6)
    out, lse = feed.held.attend(1, q, positions, 0.35)
    for row in range(3):
        alone = feed.held.fork([row]).attend(1, q[row : row + 1], positions[row : row + 1], 0.35)
        assert torch.equal(alone[0][0], out[row])
        assert torch.equal(alone[1][0], lse[row])
    order = [3, 5, 0, 1, 4, 2]
    turned = feed.held.attend(1, q[:, :, order], positions[:, order], 0.35)
    assert torch.equal(turned[0], out[:, :, order])
    assert torch.equal(turned[1], lse[:, :, order])


def forks_share_and_part(knob: CacheKnob) -> None:
    feed = fed(knob, kv_shape())
    before = digest(feed.held)
    twin = feed.fork([0, 0, 2, 1])
    assert twin.held.sealed == tuple(feed.held.sealed[r] for r in (0, 0, 2, 1))
    assert sum(marginal_bytes(twin.held.storages(), feed.held.storages()).values()) == 0
    assert resident_bytes(twin.held.storages()) == resident_bytes(feed.held.storages())
    grown = [n for n in range(feed.lengths[0] + 1, 6000) if knob.due(n) > knob.due(feed.lengths[0])][:1]
    for length in grown:
        twin.grow(0, length)
        assert twin.held.sealed[0] == knob.due(length) > twin.held.sealed[1]
    assert digest(feed.held) == before
    assert digest(twin.held, [1, 2, 3]) == [before[r] for r in (0, 2, 1)]
    alone = Feed(knob, kv_shape(batch=1), seeds=[1])
    alone.grow(0, twin.lengths[0])
    assert digest(twin.held, [0]) == digest(alone.held)


def crop_stops_at_what_is_sealed(knob: CacheKnob) -> None:
    feed = fed(knob, kv_shape())
    before = digest(feed.held)
    for row, length in enumerate(feed.lengths):
        feed.held.crop(row, length)
        feed.held.crop(row, feed.held.sealed[row])
    assert digest(feed.held) == before
    if feed.held.sealed[0]:
        with pytest.raises(CapsError, match=rf"row 0 cannot be taken back .* sealed in {knob.name}"):
            feed.held.crop(0, feed.held.sealed[0] - 1)


def a_row_can_be_emptied(knob: CacheKnob) -> None:
    feed = fed(knob, kv_shape())
    others = digest(feed.held, [0, 2])
    feed.held.crop(1, 0)
    assert feed.held.sealed[1] == 0
    assert digest(feed.held, [0, 2]) == others
    assert digest(feed.held, [1]) == digest(Feed(knob, kv_shape(batch=1), seeds=[1]).held, [0])


def a_state_comes_back(knob: CacheKnob) -> None:
    feed = fed(knob, kv_shape()).fork([0, 1, 2, 0])
    tensors, meta = feed.held.state()
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert total == sum(resident_bytes(feed.held.storages()).values())
    again = Feed(knob, feed.shape, feed.seeds, list(feed.lengths))
    again.held.load({name: tensor.clone() for name, tensor in tensors.items()}, meta)
    assert again.held.sealed == feed.held.sealed
    assert digest(again.held) == digest(feed.held)
    for row, length in enumerate(feed.lengths):
        feed.grow(row, length + 300)
        again.grow(row, length + 300)
    assert digest(again.held) == digest(feed.held)


def a_row_moves_into_another_tier(knob: CacheKnob) -> None:
    feed = fed(knob, kv_shape())
    other = Feed(knob, kv_shape(), seeds=[1, 2, 1], lengths=[0, 0, feed.lengths[0]])
    other.held.adopt(2, feed.held.fork([0]))
    assert digest(other.held, [2]) == digest(feed.held, [0])
    assert other.held.sealed == (0, 0, feed.held.sealed[0])
    goal = feed.lengths[0] + 300
    feed.grow(0, goal)
    other.grow(2, goal)
    assert digest(other.held, [2]) == digest(feed.held, [0])


CHECKS = (
    due_grows_and_never_exceeds_the_length,
    attend_is_softmax_over_what_is_held,
    an_empty_tier_sees_nothing,
    contents_depend_on_committed_tokens_alone,
    sealed_tokens_never_change,
    a_row_is_the_row_alone,
    forks_share_and_part,
    crop_stops_at_what_is_sealed,
    a_row_can_be_emptied,
    a_state_comes_back,
    a_row_moves_into_another_tier,
)
