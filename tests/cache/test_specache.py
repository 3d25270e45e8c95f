"""cache.specache: what is fetched is exact, the rest is codes, guesses change traffic only, and so does disk."""

import pytest
import torch
from tier_contract import Feed, kv_shape, text

from steno.cache._far import FarTier
from steno.cache._ledger import resident_bytes
from steno.cache.specache import SpeCache

SMALL = {"residual": 0, "block": 32}


def fed(knob: SpeCache, length: int = 96, **shape) -> Feed:
    feed = Feed(knob, kv_shape(batch=1, **shape), seeds=[1])
    feed.grow(0, length)
    return feed


def exact(feed: Feed, q: torch.Tensor, scale: float) -> torch.Tensor:
    k, v = text(1, feed.shape, feed.held.sealed[0])
    share = q.shape[1] // k.shape[1]
    keys, values = (x[0].repeat_interleave(share, 0).double() for x in (k, v))
    return (q[0].double() @ keys.mT * scale).softmax(-1) @ values


def test_by_hand():
    """Two tokens of 32 differ from the rest. One is fetched and exact; the other keeps what two bits leave of it."""
    k, v = torch.zeros(2, 1, 32, 2)
    k[0, 3], v[0, 3] = torch.tensor([3.0, 0]), torch.tensor([7.0, 1.5])
    k[0, 9], v[0, 9] = torch.tensor([2.2, 0]), torch.tensor([5.0, 0])
    tier = SpeCache(fetch=1, **SMALL).open(kv_shape(batch=1, layers=1, heads=1, groups=1, dim=2))
    tier.seal(0, 0, k, v)
    low_k, low_v, _ = tier.materialise(0)
    assert low_k[0, 0, 9, 0] == 2
    out, lse = tier.attend(0, torch.tensor([[[[1.0, 0]]]]), torch.tensor([[32]]), 1.0)
    scores = low_k[0, 0, :, 0].clone()
    scores[3] = 3.0
    values = low_v[0, 0].clone()
    values[3] = v[0, 3]
    torch.testing.assert_close(lse[0, 0, 0], scores.logsumexp(0))
    torch.testing.assert_close(out[0, 0, 0], scores.softmax(0) @ values)


def test_against_a_reference():
    """Every query and head by itself, in float64: the best by codes are looked up as they came."""
    feed = fed(SpeCache(fetch=5, **SMALL))
    low_k, low_v, _ = feed.held.materialise(1)
    k, v = text(1, feed.shape, 96)
    q, positions = feed.ask(3)
    out, lse = feed.held.attend(1, q, positions, 0.35)
    for h in range(4):
        for w in range(3):
            x = q[0, h, w].double() * 0.35
            keys, values = low_k[0, h // 2].double().clone(), low_v[0, h // 2].double().clone()
            best = (keys @ x).argsort(descending=True)[:5]
            keys[best], values[best] = k[1, h // 2, best].double(), v[1, h // 2, best].double()
            torch.testing.assert_close(out[0, h, w].double(), (keys @ x).softmax(0) @ values, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(lse[0, h, w].double(), (keys @ x).logsumexp(0), atol=1e-5, rtol=1e-5)


def test_all_fetched_is_dense_and_none_is_codes():
    q, positions = fed(SpeCache(**SMALL)).ask(2)
    feed = fed(SpeCache(fetch=1000, **SMALL))
    torch.testing.assert_close(
        feed.held.attend(0, q, positions, 0.35)[0][0].double(), exact(feed, q, 0.35), atol=1e-5, rtol=1e-5
    )
    none = fed(SpeCache(fetch=0, **SMALL))
    low_k, low_v, _ = none.held.materialise(0)
    keys, values = (x[0].repeat_interleave(2, 0) for x in (low_k, low_v))
    want = (q[0] @ keys.mT * 0.35).softmax(-1) @ values
    torch.testing.assert_close(none.held.attend(0, q, positions, 0.35)[0][0], want, atol=1e-5, rtol=1e-5)


def test_fetching_helps():
    errors = []
    for fetch in (0, 4, 16, 64):
        feed = fed(SpeCache(fetch=fetch, **SMALL))
        q, positions = feed.ask(8)
        errors.append((feed.held.attend(0, q, positions, 0.35)[0][0] - exact(feed, q, 0.35)).norm().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < errors[0] / 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_holds_what_memory_does(dtype):
    near, disk = (fed(SpeCache(on_disk=on_disk, **SMALL), dtype=dtype) for on_disk in (False, True))
    q, positions = near.ask(2)
    for layer in range(2):
        for a, b in zip(*(f.held.attend(layer, q, positions, 0.35) for f in (near, disk)), strict=True):
            assert torch.equal(a, b)
    assert resident_bytes(near.held.storages()) == resident_bytes(disk.held.storages())
    again = SpeCache(on_disk=True, **SMALL).open(disk.shape)
    again.load(*near.held.state())
    for tier, named in ((near.held, False), (disk.held, True), (again, True)):
        assert all((part.untyped_storage().filename is not None) == named for part in tier.storages()["far"])


def test_guesses_decide_traffic_and_nothing_else():
    """A query that follows its own guess finds all it needs near; one that follows another's may not."""
    q, positions = fed(SpeCache(**SMALL)).ask(1)
    other, _ = fed(SpeCache(**SMALL)).ask(1, salt=9)
    outs, shares = [], []
    for guess in (q, other, None):
        feed = fed(SpeCache(fetch=4, **SMALL))
        tier = feed.held
        assert isinstance(tier, FarTier)
        if guess is not None:
            tier.attend(0, guess, positions, 0.35)
        asked, near = tier.traffic.asked, tier.traffic.near
        outs.append(tier.attend(0, q, positions, 0.35)[0])
        shares.append((tier.traffic.near - near) / (tier.traffic.asked - asked))
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])
    assert shares[0] == 1
    assert shares[2] == 0
    assert shares[1] < 1


def test_a_fork_and_an_emptied_row_have_nothing_near():
    feed = fed(SpeCache(fetch=4, **SMALL))
    q, positions = feed.ask(1)
    feed.held.attend(0, q, positions, 0.35)
    twin = feed.held.fork([0])
    twin.attend(0, q, positions, 0.35)
    assert twin.traffic.near == 0
    assert feed.held.traffic.asked > 0
    feed.held.crop(0, 0)
    feed.lengths[0] = 0
    feed.grow(0, 96)
    feed.held.attend(0, q, positions, 0.35)
    assert feed.held.traffic.near == 0


def test_what_is_near_is_small():
    """Two heads, two layers, 96 tokens: codes of 2 bits, and per channel and token a scale and a zero in half."""
    sizes = resident_bytes(fed(SpeCache(**SMALL)).held.storages())
    values = 2 * 2 * 96 * 8
    assert sizes == {
        "keys": values // 4, "values": values // 4, "far": 2 * values * 4,
        "key_scales": 2 * 2 * 3 * 2 * 8 * 2, "value_scales": 2 * 2 * 96 * 2 * 2,
    }  # fmt: skip
