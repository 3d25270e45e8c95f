"""cache.gear: outliers come back, the low-rank part finds what is of low rank, and no part makes the error larger."""

import pytest
import torch
from tier_contract import Feed, kv_shape, text

from steno.cache._ledger import resident_bytes
from steno.cache.gear import Gear, low_rank

SHAPE = kv_shape(batch=1, layers=1, dim=32)


def error(knob: Gear) -> float:
    feed = Feed(knob, SHAPE, seeds=[1])
    feed.grow(0, 256 + knob.residual)
    k, v, _ = feed.held.materialise(0)
    truth = text(1, SHAPE, 256)
    return sum(float((a[0] - b[0]).square().mean()) for a, b in zip((k, v), truth, strict=True))


def test_low_rank_by_hand():
    """The outer product of (1, 2) and (3, 4) is of rank one: one factor says it all."""
    x = torch.tensor([[3.0, 4.0], [6.0, 8.0]])
    factors = low_rank(x, 1).float()
    torch.testing.assert_close(factors[:2] @ factors[2:].mT, x, atol=1e-2, rtol=0)


def test_low_rank_is_nearly_the_best_of_its_rank():
    x = torch.randn(6, 64, 32, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(x)
    for rank in (1, 4, 16):
        a, b = low_rank(x, rank).float().split([64, 32], 1)
        best = (x - u[:, :, :rank] * s[:, None, :rank] @ v[:, :rank]).norm()
        assert (x - a @ b.mT).norm() <= 1.05 * best
    a, b = low_rank(x[:, :8], 16).float().split([8, 32], 1)
    torch.testing.assert_close(a @ b.mT, x[:, :8], atol=2e-2, rtol=0)


def test_each_part_pays():
    bare = error(Gear(rank=0, outliers=0))
    assert error(Gear(rank=0)) < bare
    assert error(Gear(outliers=0)) < bare
    assert error(Gear()) < min(error(Gear(rank=0)), error(Gear(outliers=0)))
    errors = [error(Gear(rank=rank)) for rank in (0, 1, 2, 4, 8)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_all_outliers_are_exact(dtype):
    shape = kv_shape(batch=1, layers=1, dim=32, dtype=dtype)
    feed = Feed(Gear(outliers=100, residual=0), shape, seeds=[1])
    feed.grow(0, 128)
    for held, want in zip(feed.held.materialise(0)[:2], text(1, shape, 128), strict=True):
        assert torch.equal(held[0], want[0].float())


def test_outliers_come_back_and_spare_their_neighbours():
    knob = Gear(rank=0, outliers=6.25, residual=0)
    k, v = (x[0] for x in text(1, SHAPE, 64))
    k[0, 9, 4], v[1, 20, 7] = 900.0, -700.0
    tier = knob.open(SHAPE)
    tier.seal(0, 0, k, v)
    keys, values, _ = tier.materialise(0)
    assert keys[0, 0, 9, 4] == 900
    assert values[0, 1, 20, 7] == -700
    rest = [t for t in range(64) if t != 9]
    assert (keys[0, 0, rest, 4] - k[0, rest, 4]).abs().max() < 2


def test_bytes_are_those_of_the_shapes():
    """2 key heads of 32 channels, 2 blocks of 64: codes, scale and zero per vector, 4 or 2 outliers, rank 3."""
    feed = Feed(Gear(rank=3, outliers=6.25, residual=0), SHAPE, seeds=[1])
    feed.grow(0, 128)
    assert resident_bytes(feed.held.storages()) == {
        "keys": 2 * 128 * 32 // 4, "key_scales": 2 * 2 * 32 * 4,
        "values": 2 * 128 * 32 // 4, "value_scales": 2 * 128 * 4,
        "key_outliers": 2 * 2 * 32 * 4 * 2, "key_places": 2 * 2 * 32 * 4,
        "value_outliers": 2 * 128 * 2 * 2, "value_places": 2 * 128 * 2,
        "key_factors": 2 * 2 * 96 * 3 * 2, "value_factors": 2 * 2 * 96 * 3 * 2,
    }  # fmt: skip
