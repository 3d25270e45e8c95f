"""cache.staircase: bits fall with age, each token stands on its step, and bytes are bounded by a formula."""

import torch
from tier_contract import Feed, kv_shape, text

from steno.cache._ledger import resident_bytes
from steno.cache._token import TokenForm
from steno.cache.staircase import Staircase
from steno.core.tier import Observer

SMALL = Staircase(first=16, second=24, residual=8, block=8)
SHAPE = kv_shape(batch=1, layers=1, dim=32)


def grown(knob: Staircase, length: int) -> Feed:
    feed = Feed(knob, SHAPE, seeds=[3])
    feed.grow(0, length)
    return feed


def test_each_token_stands_on_its_step():
    feed = grown(SMALL, 128)
    assert feed.held.sealed == (120,)
    where = feed.held.materialise(0)[2][0]
    want = [*range(104, 120), *range(80, 104), *range(80)]
    assert where.tolist() == [want, want]


def test_going_down_a_step_is_one_rounding_more():
    """Token 0 of 56: into 8 bits, from there into 4, from there into 2, as if by hand."""
    feed = grown(SMALL, 56)
    k, v, where = feed.held.materialise(0)
    assert where[0, 0, -1] == 7
    x = [t[0][:, :8] for t in text(3, SHAPE, 56)]
    for bits in (8, 4, 2):
        form = TokenForm(key_bits=bits, value_bits=bits, group=32, dim=32)
        x = form.decode(form.encode(*x))
    assert torch.equal(k[0, :, -8:], x[0])
    assert torch.equal(v[0, :, -8:], x[1])


def test_error_grows_with_age():
    feed = grown(SMALL, 400)
    k, _, where = feed.held.materialise(0)
    off = (k[0, 0] - text(3, SHAPE, 400)[0][0][0, where[0, 0]]).square().mean(1)
    assert off[:16].mean() * 50 < off[16:40].mean() < off[40:].mean() / 10


def test_one_step_is_its_codec():
    feed = grown(Staircase(first=4096, residual=0, block=8), 64)
    truth = [x[0] for x in text(3, SHAPE, 64)]
    form = TokenForm(key_bits=8, value_bits=8, group=32, dim=32)
    for held, want in zip(feed.held.materialise(0)[:2], form.decode(form.encode(*truth)), strict=True):
        assert torch.equal(held[0], want)


def test_bytes_by_hand():
    """Two heads; 32 channels in a group, so 4 bytes of scales for keys and for values, and a position of 4."""
    feed = grown(SMALL, 128)
    assert sum(resident_bytes(feed.held.storages()).values()) == sum(
        2 * count * (2 * (32 * bits // 8 + 4) + 4) for count, bits in ((16, 8), (24, 4), (80, 2))
    )


def test_no_queries_are_kept_for_it():
    assert not isinstance(SMALL.open(SHAPE), Observer)
