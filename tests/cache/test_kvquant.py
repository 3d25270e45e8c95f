"""cache.kvquant: the best levels for a normal law, keys that stand still before rotation, outliers, exact sinks."""

import pytest
import torch
from tier_contract import Feed, kv_shape, text

from steno.cache._normal import levels
from steno.cache._turn import turn
from steno.cache.kvquant import KVQuant
from steno.core.tier import Rope

SHAPE = kv_shape(batch=1, layers=1, dim=32)


def held(knob: KVQuant, shape=SHAPE, count: int = 128):
    feed = Feed(knob, shape, seeds=[1])
    feed.grow(0, count + knob.residual)
    k, v, _ = feed.held.materialise(0)
    return k[0], v[0]


def test_levels_are_the_published_ones():
    """Max 1960, table I: the optimum quantiser of a normal signal."""
    want = {2: [0.4528, 1.5104], 3: [0.2451, 0.7560, 1.3439, 2.1520], 4: [0.1284, 0.3881, 0.6568, 0.9424]}
    for bits, half in want.items():
        table = levels(bits)
        assert torch.equal(table, -table.flip(0))
        torch.testing.assert_close(table[2 ** (bits - 1) :][:4], torch.tensor(half), atol=2e-4, rtol=0)


def test_by_hand():
    """A channel that is one of two values, half the time each, has the deviation 1: levels +-0.4528 and +-1.5104."""
    knob = KVQuant(key_bits=2, value_bits=2, outliers=0, sinks=0, residual=0, block=32)
    shape = kv_shape(batch=1, layers=1, heads=1, groups=1, dim=8, rope=None)
    tier = knob.open(shape)
    x = torch.tensor([3.0, 5.0]).repeat(16)[None, :, None].expand(1, 32, 8)
    tier.seal(0, 0, x, x.new_ones(1, 32, 8) * 7)
    k, v, _ = tier.materialise(0)
    # (3 - 4) / 1 = -1 lies beyond the edge at -0.98, so it becomes 4 - 1.5104.
    torch.testing.assert_close(k[0, 0, :2, 0], torch.tensor([4 - 1.5104, 4 + 1.5104]), atol=1e-3, rtol=0)
    assert (v == 7).all()


def test_uneven_levels_beat_even_ones_on_normal_numbers():
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    table = levels(3)
    even = torch.linspace(-4, 4, 8)
    ours, theirs = ((t[(x[:, None] - t).abs().argmin(1)] - x).square().mean() for t in (table, even))
    # Max 1960: 0.03454 at 8 levels.
    assert float(ours) == pytest.approx(0.03454, rel=0.03)
    assert ours < theirs * 0.8


def test_before_rotation_a_steady_channel_costs_nothing():
    """A key that is the same at every position before rotation is stored as its mean, and comes back turned."""
    rope = Rope(frequencies=(1.0, 0.1, 0.01, 0.001))
    shape = kv_shape(batch=1, layers=1, heads=1, groups=1, dim=8, rope=rope)
    key = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8]).expand(1, 64, 8)
    k = turn(key, rope, torch.arange(64))
    knob = KVQuant(key_bits=2, value_bits=2, outliers=0, sinks=0, residual=0)
    errors = []
    for known in (rope, None):
        tier = knob.open(kv_shape(batch=1, layers=1, heads=1, groups=1, dim=8, rope=known))
        tier.seal(0, 0, k, k)
        errors.append((tier.materialise(0)[0][0] - k).abs().max())
    assert shape.rope == rope
    assert errors[0] < 1e-4 < 0.1 < errors[1]


@pytest.mark.parametrize("interleaved", [False, True])
def test_turning_back_and_forth(interleaved):
    rope = Rope(frequencies=(1.0, 0.3, 0.01), interleaved=interleaved)
    x = torch.randn(2, 50, 10, generator=torch.Generator().manual_seed(0))
    where = torch.arange(1000, 1050)
    there = turn(x, rope, where)
    torch.testing.assert_close(turn(there, rope, where, back=True), x, atol=1e-5, rtol=0)
    # Turns add up: R(a) R(b) = R(a + b). Channels beyond the turned ones stay.
    torch.testing.assert_close(turn(turn(x, rope, where), rope, where), turn(x, rope, 2 * where), atol=1e-4, rtol=0)
    assert torch.equal(there[..., 6:], x[..., 6:])
    pair = (0, 1) if interleaved else (0, 3)
    by_hand = torch.tensor(1000.0, dtype=torch.float64)
    want = x[0, 0, pair[0]] * by_hand.cos() - x[0, 0, pair[1]] * by_hand.sin()
    torch.testing.assert_close(there[0, 0, pair[0]].double(), want.double(), atol=1e-6, rtol=0)


def test_sinks_are_exact_and_do_not_widen_ranges():
    k, v = (x[0] for x in text(1, SHAPE, 64))
    wild_k, wild_v = k.clone(), v.clone()
    wild_k[:, :2] *= 300
    wild_v[:, :2] *= 300
    keys = []
    for a, b in ((k, v), (wild_k, wild_v)):
        tier = KVQuant(sinks=2, residual=0).open(SHAPE)
        tier.seal(0, 0, a, b)
        out = tier.materialise(0)
        assert torch.equal(out[0][0, :, :2], a[:, :2])
        assert torch.equal(out[1][0, :, :2], b[:, :2])
        keys.append(out[0][0, :, 2:])
    assert torch.equal(*keys)


def test_outliers_and_bits_pay():
    truth = [x[0] for x in text(1, SHAPE, 128)]

    def error(**settings: object) -> float:
        return sum(float((a - b).square().mean()) for a, b in zip(held(KVQuant(**settings)), truth, strict=True))

    assert error(outliers=3) < error(outliers=0)
    errors = [error(key_bits=b, value_bits=b) for b in (2, 3, 4)]
    assert errors[0] > 2.5 * errors[1] > 6 * errors[2]
