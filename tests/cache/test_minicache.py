"""cache.minicache: lengths and equal directions survive, the farthest tokens are exact, a pair stands once."""

import math

import pytest
import torch
from tier_contract import Feed, kv_shape, text

from steno.cache._ledger import resident_bytes
from steno.cache.minicache import MiniCache, slerp

ALL = {"start": 0, "residual": 0, "block": 32}


def sealed(knob: MiniCache, pairs: list[tuple[torch.Tensor, torch.Tensor]], dim: int = 8):
    groups = pairs[0][0].shape[0]
    tier = knob.open(kv_shape(batch=1, layers=len(pairs), heads=groups, groups=groups, dim=dim))
    for layer, (k, v) in enumerate(pairs):
        tier.seal(0, layer, k, v)
    return tier


def test_by_hand():
    """Between (1, 0) and (0, 1) at 0.6 lies the direction of 54 degrees; each layer keeps its own length."""
    low = torch.tensor([2.0, 0]).expand(1, 32, 2)
    high = torch.tensor([0, 3.0]).expand(1, 32, 2)
    tier = sealed(MiniCache(retain=0, **ALL), [(low, high), (high, low)], dim=2)
    keys = [tier.materialise(layer)[0][0, 0, 0] for layer in range(2)]
    want = torch.tensor([math.cos(math.radians(54)), math.sin(math.radians(54))])
    torch.testing.assert_close(keys[0], 2 * want, atol=1e-5, rtol=0)
    torch.testing.assert_close(keys[1], 3 * want, atol=1e-5, rtol=0)
    # The values go from (0, 1) to (1, 0): 36 degrees.
    torch.testing.assert_close(tier.materialise(1)[1][0, 0, 0], 2 * want.flip(0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_the_arc(t):
    a, b = torch.nn.functional.normalize(torch.randn(2, 50, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    middle, angle = slerp(a, b, t)
    torch.testing.assert_close(middle.norm(dim=-1), torch.ones(50), atol=1e-5, rtol=0)
    torch.testing.assert_close((middle * a).sum(-1).clamp(-1, 1).acos(), t * angle, atol=2e-3, rtol=0)
    torch.testing.assert_close((middle * b).sum(-1).clamp(-1, 1).acos(), (1 - t) * angle, atol=2e-3, rtol=0)


def test_where_there_is_no_arc():
    a = torch.eye(3)
    for b, t in ((a, 0.6), (-a, 0.6)):
        middle, _ = slerp(a, b, t)
        assert middle.isfinite().all()
        torch.testing.assert_close(middle.abs(), a, atol=1e-6, rtol=0)
    assert not slerp(torch.zeros(1, 3), torch.zeros(1, 3), 0.5)[0].any()


def test_equal_directions_come_back():
    k, v = (x[0] for x in text(1, kv_shape(), 64))
    tier = sealed(MiniCache(retain=0, **ALL), [(k, v), (k * 3, v * 0.5)])
    for layer, scale in ((0, (1, 1)), (1, (3, 0.5))):
        keys, values, _ = tier.materialise(layer)
        torch.testing.assert_close(keys[0], k * scale[0], atol=1e-2, rtol=2e-3)
        torch.testing.assert_close(values[0], v * scale[1], atol=1e-2, rtol=2e-3)


def test_lengths_and_the_farthest_tokens_survive():
    k, v = (x[0] for x in text(1, kv_shape(), 32))
    other = k + 0.01 * v
    other[:, 7] = -k[:, 7] + 0.3 * v[:, 7]
    tier = sealed(MiniCache(retain=100 / 32, **ALL), [(k, k), (other, other)])
    for layer, truth in ((0, k), (1, other)):
        keys = tier.materialise(layer)[0][0]
        torch.testing.assert_close(keys.norm(dim=-1), truth.norm(dim=-1), atol=1e-2, rtol=1e-3)
        assert torch.equal(keys[:, 7], truth[:, 7])
        assert not torch.equal(keys[:, 8], truth[:, 8])


def test_all_retained_is_exact():
    knob = MiniCache(retain=100, **ALL)
    feed = Feed(knob, kv_shape(batch=1, layers=5), seeds=[1])
    feed.grow(0, 96)
    truth = text(1, feed.shape, 96)
    for layer in range(5):
        k, v, _ = feed.held.materialise(layer)
        assert torch.equal(k[0], truth[0][layer])
        assert torch.equal(v[0], truth[1][layer])


def test_a_pair_stands_once():
    """Five layers from the second on: 0 alone, (1, 2) and (3, 4) as pairs. Two heads, 64 tokens, one in 32 kept."""
    feed = Feed(MiniCache(start=20, retain=100 / 32, residual=0, block=32), kv_shape(batch=1, layers=5), seeds=[1])
    feed.grow(0, 64)
    per = 2 * 2 * 64
    assert resident_bytes(feed.held.storages()) == {
        "payload": 2 * per // 2 * 8 * 4,
        "key_directions": per * 8 * 4, "value_directions": per * 8 * 4,
        "key_lengths": per * 2 * 2, "value_lengths": per * 2 * 2,
        "key_places": per // 32, "value_places": per // 32,
        "key_kept": per // 32 * 2 * 8 * 4, "value_kept": per // 32 * 2 * 8 * 4,
    }  # fmt: skip
