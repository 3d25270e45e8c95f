"""cache.prune: the same tokens in any precision, and bytes that trade tokens against bits."""

import pytest
import torch
from tier_contract import Feed, kv_shape, text

from steno.cache._ledger import resident_bytes
from steno.cache._token import TokenForm, fit_group
from steno.cache.prune import Prune
from steno.core.errors import KnobError

SMALL = {"window": 4, "kernel": 3, "residual": 8, "block": 4}


def fed(length: int = 120, dim: int = 8, **settings: object) -> Feed:
    feed = Feed(Prune(**{**SMALL, **settings}), kv_shape(batch=1, dim=dim), seeds=[3])
    feed.grow(0, length)
    return feed


def test_by_hand():
    """Channels 0 to 3 in two bits are exact; a group with a range of 6 has steps of 2."""
    form = TokenForm(key_bits=2, value_bits=2, group=4, dim=8)
    x = torch.tensor([[[0.0, 1, 2, 3, 0, 2, 3.5, 6]]])
    k, v = form.decode(form.encode(x, -x))
    assert k.tolist() == [[[0, 1, 2, 3, 0, 2, 4, 6]]]
    assert v.tolist() == [[[0, -1, -2, -3, 0, -2, -4, -6]]]


def test_sixteen_bits_prune_only_and_a_full_budget_quantises_only():
    k, v, where = fed(tokens=20, bits=16).held.materialise(1)
    truth = [x[1] for x in text(3, kv_shape(), 120)]
    for g in range(2):
        assert torch.equal(k[0, g], truth[0][g, where[0, g]])
        assert torch.equal(v[0, g], truth[1][g, where[0, g]])
    feed = fed(tokens=4096, bits=4)
    k, v, where = feed.held.materialise(1)
    sealed = feed.held.sealed[0]
    assert where[0].tolist() == [list(range(sealed))] * 2
    form = TokenForm(key_bits=4, value_bits=4, group=8, dim=8)
    want = form.decode(form.encode(truth[0][:, :sealed], truth[1][:, :sealed]))
    assert torch.equal(k[0], want[0])
    assert torch.equal(v[0], want[1])


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_survivors_are_quantised_once(bits):
    """A token that lived through many choices holds what it was given when it came."""
    k, _, where = fed(length=400, tokens=12, bits=bits).held.materialise(0)
    keys = text(3, kv_shape(), 400)[0][0]
    form = TokenForm(key_bits=bits, value_bits=bits, group=8, dim=8)
    fresh = form.decode(form.encode(keys, keys))[0]
    for g in range(2):
        assert torch.equal(k[0, g], fresh[g, where[0, g]])
        assert len(set(where[0, g].tolist())) == 12


def test_four_times_the_tokens_for_the_bytes():
    """Payload only: 4 bits of 64 tokens weigh what bfloat16 of 16 does. Scales and positions come on top."""
    shape = kv_shape(batch=1, dim=32, dtype=torch.bfloat16)
    sizes = {}
    for tokens, bits in ((16, 16), (64, 4)):
        feed = Feed(Prune(tokens=tokens, bits=bits, **SMALL), shape, seeds=[3])
        feed.grow(0, 300)
        sizes[bits] = resident_bytes(feed.held.storages())
    assert sizes[4]["keys"] + sizes[4]["values"] == sizes[16]["payload"] == 4 * 16 * 2 * 32 * 2
    # Two layers of two heads of 64 tokens: scale and zero for one group of 32 channels; a position.
    assert sizes[4]["key_scales"] == sizes[4]["value_scales"] == 4 * 64 * 4
    assert sizes[4]["positions"] == 4 * 64 * 4


def test_groups_fit_the_head():
    assert [fit_group(64, dim) for dim in (128, 64, 80, 7)] == [64, 64, 40, 7]


def test_a_window_wider_than_the_residual_is_refused():
    with pytest.raises(KnobError, match=r"window must be at most residual \(16\), got 32.*prune.window=16"):
        Prune(residual=16)
