"""cache.vidkv: bits and trits pack tightly, signs survive, the transform loses nothing, and 1.x is 1.x."""

import pytest
import torch
from tier_contract import Feed, kv_shape, text

from steno.cache._ledger import resident_bytes
from steno.cache._trits import pack_bits, pack_trits, unpack_bits, unpack_trits
from steno.cache.vidkv import VidKV, _unwaved, _waves

SHAPE = kv_shape(batch=1, layers=1, dim=32)


def test_packing_by_hand():
    assert pack_bits(torch.tensor([True, False, True, True])).tolist() == [1 + 4 + 8]
    # -1 0 1 1 -1 is 0 + 1 * 3 + 2 * 9 + 2 * 27 + 0 * 81 and 1 is 2, padded with zeros (digit 1 of a 0 is not: it is 1).
    assert pack_trits(torch.tensor([-1, 0, 1, 1, -1], dtype=torch.int8)).tolist() == [75]


@pytest.mark.parametrize("count", [1, 5, 8, 37, 160])
def test_packing_round_trips(count):
    noise = torch.Generator().manual_seed(count)
    x = torch.randint(-1, 2, (3, count), generator=noise, dtype=torch.int8)
    assert pack_trits(x).shape == (3, -(-count // 5))
    assert torch.equal(unpack_trits(pack_trits(x), count), x.float())
    assert pack_bits(x > 0).shape == (3, -(-count // 8))
    assert torch.equal(unpack_bits(pack_bits(x > 0), count), x > 0)


def test_every_byte_of_trits():
    codes = torch.arange(243, dtype=torch.uint8)[:, None]
    assert torch.equal(pack_trits(unpack_trits(codes, 5).to(torch.int8)), codes)


@pytest.mark.parametrize("count", [2, 4, 30])
def test_the_transform_keeps_count_and_energy_and_undoes_itself(count):
    x = torch.randn(3, 7, count, generator=torch.Generator().manual_seed(count))
    assert _waves(x).shape == x.shape
    torch.testing.assert_close(_unwaved(_waves(x)), x, atol=1e-5, rtol=0)


def test_a_sign_survives_one_bit():
    """A quiet part that is one constant frequency, of either sign, comes back as it was."""
    knob = VidKV(wide=0, sinks=0, residual=0)
    shape = kv_shape(batch=1, layers=1, heads=1, groups=1, dim=8, rope=None)
    tier = knob.open(shape)
    k = torch.tensor([2.0, -2.0]).repeat(16)[None, :, None].expand(1, 32, 8)
    v = torch.tensor([1.0, 0, -1, 0]).repeat(8)[None, :, None].expand(1, 32, 8)
    tier.seal(0, 0, k, v)
    keys, values, _ = tier.materialise(0)
    # k is its own mean frequency, 2 * sqrt(8) with alternating sign; the others are 0, and their size is 0.
    torch.testing.assert_close(keys[0], k, atol=5e-3, rtol=0)
    assert torch.equal(values[0], v)


def test_ternary_values_are_the_naive_ones():
    knob = VidKV(sinks=0, residual=0)
    feed = Feed(knob, SHAPE, seeds=[1])
    feed.grow(0, 64)
    v = text(1, SHAPE, 64)[1][0]
    got = feed.held.materialise(0)[1][0]
    for g in range(2):
        for start in (0, 32):
            for c in range(32):
                x = v[g, start : start + 32, c]
                heavy = x.abs() > 0.7 * x.abs().mean()
                want = torch.where(heavy, x.sign() * x[heavy].abs().mean(), 0.0)
                torch.testing.assert_close(got[g, start : start + 32, c], want, atol=2e-3, rtol=0)


def test_wide_channels_are_those_with_the_widest_ranges():
    shape = kv_shape(batch=1, layers=1, heads=1, groups=1, dim=8, rope=None)
    k = torch.randn(1, 32, 8, generator=torch.Generator().manual_seed(0))
    k[..., [1, 6]] *= 50
    tier = VidKV(wide=25, sinks=0, residual=0).open(shape)
    tier.seal(0, 0, k, k)
    assert unpack_bits(tier.storages()["wide_at"][0], 8)[0, 0].tolist() == [c in (1, 6) for c in range(8)]
    # Two bits: within half of a third of the range.
    spread = k.amax(1) - k.amin(1)
    off = (tier.materialise(0)[0][0] - k).abs().amax(1)
    assert (off[0, [1, 6]] <= spread[0, [1, 6]] / 6 * 1.01).all()


def test_bits_are_real():
    """Half of 32 channels in 2 bits, half in 1, values in 1.6: what is stored, and float16 scales beside it."""
    feed = Feed(VidKV(sinks=0, residual=0), SHAPE, seeds=[1])
    feed.grow(0, 320)
    blocks = 2 * 10
    assert resident_bytes(feed.held.storages()) == {
        "wide": blocks * 32 * 16 // 4, "wide_scales": blocks * 16 * 4, "wide_at": blocks * 4,
        "signs": blocks * 32 * 16 // 8, "sizes": blocks * 16 * 2,
        "values": blocks * -(-32 * 32 // 5), "value_scales": blocks * 32 * 2,
    }  # fmt: skip
