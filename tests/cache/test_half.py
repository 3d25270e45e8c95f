"""cache.half: what a tier holds is each number rounded to float16, and nothing that float16 cannot hold."""

import pytest
import torch
from tier_contract import Feed, kv_shape, text

from steno.cache._ledger import bits_per_value, resident_bytes
from steno.cache.half import Half
from steno.core.errors import ModelError


def test_by_hand():
    tier = Half(block=1).open(kv_shape(batch=1, layers=1, heads=1, groups=1))
    k = torch.full((1, 3, 8), 1 + 2.0**-11)
    k[0, 1], k[0, 2] = 1 + 3 * 2.0**-11, 65519.0
    v = torch.full((1, 3, 8), 2.0**-25)
    v[0, 1], v[0, 2] = 1.5 * 2.0**-24, -0.1
    tier.seal(0, 0, k, v)
    keys, values, _ = tier.materialise(0)
    # Ties go to the even neighbour, small numbers to multiples of 2^-24.
    assert keys[0, 0, :, 0].tolist() == [1.0, 1 + 2.0**-9, 65504.0]
    assert values[0, 0, :, 0].tolist() == [0.0, 2.0**-23, -0.0999755859375]


def test_holds_the_rounded_text_and_sixteen_bits_of_it():
    shape = kv_shape(batch=1)
    feed = Feed(Half(), shape, seeds=[1])
    feed.grow(0, 200)
    assert feed.held.sealed == (192,)
    truth = text(1, shape, 192)
    for layer in range(2):
        for held, want in zip(feed.held.materialise(layer), truth, strict=False):
            assert torch.equal(held[0], want[layer].half().float())
            assert ((held[0] - want[layer]).abs() <= want[layer].abs() * 2.0**-11).all()
    assert bits_per_value(sum(resident_bytes(feed.held.storages()).values()), shape, 192) == 16


def test_a_float16_model_loses_nothing():
    shape = kv_shape(batch=1, dtype=torch.float16)
    feed = Feed(Half(block=8), shape, seeds=[1])
    feed.grow(0, 64)
    k, v, _ = feed.held.materialise(1)
    want = text(1, shape, 64)
    assert torch.equal(k[0].half(), want[0][1])
    assert torch.equal(v[0].half(), want[1][1])


def test_due_leaves_a_residual():
    assert [Half(residual=10, block=4).due(n) for n in (0, 10, 13, 14, 22)] == [0, 0, 0, 4, 12]


@pytest.mark.parametrize("bad", [7e4, torch.inf, torch.nan])
def test_what_float16_cannot_hold_is_refused(bad):
    tier = Half().open(kv_shape(batch=1))
    v = torch.zeros(2, 64, 8)
    k = v.clone()
    k[1, 5, 3] = bad
    with pytest.raises(ModelError, match=r"cache\.half: .* beyond float16 .*Use cache\.dense"):
        tier.seal(0, 0, k, v)
