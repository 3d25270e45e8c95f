"""cache.rotatekv: an orthogonal turn that spreads outliers, an order that can be undone, exact sinks."""

import pytest
import torch
from tier_contract import Feed, kv_shape, text

from steno.cache._hadamard import hadamard
from steno.cache._ledger import resident_bytes
from steno.cache.rotatekv import RotateKV
from steno.core.errors import KnobError

SHAPE = kv_shape(batch=1, layers=1, heads=4, groups=4, dim=32)


def error(knob: RotateKV, scale: float = 1.0) -> float:
    """Mean square error of the keys, one channel of which is `scale` times larger; before rotation, so rope=None."""
    shape = kv_shape(batch=1, layers=1, heads=4, groups=4, dim=32, rope=None)
    k, v = (x[0] for x in text(1, shape, 128))
    k[0, :, 5] *= scale
    tier = knob.open(shape)
    tier.seal(0, 0, k, v)
    # What counts is the error of a score, and queries are as large in every channel.
    return float((tier.materialise(0)[0][0] - k).square().mean())


def test_hadamard_by_hand():
    """The 4 x 4 matrix of +-1/2."""
    x = torch.eye(4)
    want = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    assert torch.equal(hadamard(x), want)
    assert torch.equal(hadamard(torch.tensor([[3.0]])), torch.tensor([[3.0]]))


@pytest.mark.parametrize("size", [2, 16, 128])
def test_hadamard_keeps_products_and_undoes_itself(size):
    a, b = torch.randn(2, 7, size, generator=torch.Generator().manual_seed(size)).unbind(0)
    torch.testing.assert_close((hadamard(a) * hadamard(b)).sum(1), (a * b).sum(1), atol=1e-4, rtol=0)
    torch.testing.assert_close(hadamard(hadamard(a)), a, atol=1e-5, rtol=0)


def test_no_quantisation_to_speak_of_gives_back_what_came():
    """8 bits: channels are back in their places and heads in theirs."""
    feed = Feed(RotateKV(key_bits=8, value_bits=8, residual=0), SHAPE, seeds=[1])
    feed.grow(0, 192)
    for held, want in zip(feed.held.materialise(0)[:2], text(1, SHAPE, 192), strict=True):
        torch.testing.assert_close(held[0], want[0], atol=0.1, rtol=0)
        assert (held[0] - want[0]).abs().mean() < 0.02


def test_a_turn_saves_the_channels_beside_an_outlier():
    """Per token without a turn, an outlier stretches the range of all its group."""
    from steno.cache._quant import dequantise, quantise

    shape = kv_shape(batch=1, layers=1, heads=4, groups=4, dim=32, rope=None)
    k = text(1, shape, 128)[0][0].clone()
    k[0, :, 5] *= 20
    codes, scale, zero = quantise(k, 3, 2)
    plain = float((dequantise(codes.float(), scale, zero, 3) - k).square().mean())
    assert error(RotateKV(key_bits=3, sinks=0, residual=0), 20) < plain / 2


def test_sorting_channels_pays_where_they_differ():
    """Keys whose rotated channels are large and small by turns: sorted, the small ones have ranges of their own."""
    shape = kv_shape(batch=1, layers=1, heads=4, groups=4, dim=32, rope=None)
    size = torch.tensor([0.1, 4.0]).repeat(64)
    wide = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)) * size
    k = hadamard(wide).unflatten(1, (4, 32)).movedim(1, 0)
    errors = []
    for reorder in (True, False):
        tier = RotateKV(reorder=reorder, sinks=0, residual=0).open(shape)
        tier.seal(0, 0, k, k)
        back = hadamard(tier.materialise(0)[0][0].movedim(0, 1).flatten(1))
        errors.append(float(((back - wide) / size).square().mean()))
    assert errors[0] < errors[1] / 10


def test_sinks_are_exact():
    feed = Feed(RotateKV(sinks=3, residual=0), kv_shape(batch=1, dim=32, dtype=torch.bfloat16), seeds=[1])
    feed.grow(0, 64)
    k, v, _ = feed.held.materialise(1)
    want = text(1, feed.shape, 3)
    assert torch.equal(k[0, :, :3], want[0][1].float())
    assert torch.equal(v[0, :, :3], want[1][1].float())


def test_bytes_are_those_of_the_shapes():
    """4 heads of 32 turned together: 128 channels in groups of 32, their order in two bytes each for each block."""
    feed = Feed(RotateKV(sinks=2, residual=0), SHAPE, seeds=[1])
    feed.grow(0, 128)
    assert resident_bytes(feed.held.storages()) == {
        "keys": 128 * 128 // 4, "key_scales": 128 * 4 * 4, "order": 2 * 128 * 2,
        "values": 4 * 128 * 32 // 4, "value_scales": 4 * 128 * 4, "sinks": 2 * 2 * 4 * 32 * 4,
    }  # fmt: skip


def test_a_width_that_is_no_power_of_two_is_refused():
    with pytest.raises(KnobError, match=r"head width must be a power of two, got 80\. Use cache\.affine"):
        RotateKV().open(kv_shape(dim=80))
    # Three key heads cannot be turned two by two, so each is turned alone.
    RotateKV().open(kv_shape(heads=3, groups=3, dim=64))
