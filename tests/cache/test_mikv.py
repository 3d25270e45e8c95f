"""cache.mikv: every token is in one place, the important ones are exact, the others rounded once."""

import torch
from tier_contract import Feed, kv_shape, text

from steno.cache._token import TokenForm
from steno.cache.h2o import H2O
from steno.cache.mikv import MiKV

SHAPE = kv_shape(batch=1, layers=1)
SMALL = {"important": 10, "residual": 4, "block": 4}


def grown(knob, length: int = 150, shape=SHAPE) -> Feed:
    feed = Feed(knob, shape, seeds=[3])
    feed.grow(0, length)
    return feed


def test_by_hand():
    """One token of two stays exact: the one that both queries look at."""
    knob = MiKV(important=1, low_bits=2, residual=0, block=2, group=8)
    tier = knob.open(kv_shape(batch=1, layers=1, heads=1, groups=1, dim=8, rope=None))
    k = torch.tensor([[[0.2, 0, 0, 0, 0, 0, 0, 3], [9.0, 1, 2, 3, 4, 5, 6, 7]]])
    q = torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0]).expand(1, 2, 8)
    tier.observe(0, 0, q, k)
    tier.seal(0, 0, k, k)
    keys, _, where = tier.materialise(0)
    # Query 0 sees key 0 alone and gives it 1, query 1 gives nearly all to key 1: 1.0002 beats 0.9998, so key 0 stays.
    assert where.tolist() == [[[0, 1]]]
    assert torch.equal(keys[0, 0, 0], k[0, 0])
    # Key 1 in two bits over 1 to 9: steps of 8/3.
    torch.testing.assert_close(keys[0, 0, 1, :4], torch.tensor([9.0, 1.0, 1.0, 3.67]), atol=1e-2, rtol=0)


def test_every_token_is_in_exactly_one_place():
    feed = grown(MiKV(**SMALL))
    _, _, where = feed.held.materialise(0)
    for g in range(2):
        assert sorted(where[0, g].tolist()) == list(range(feed.held.sealed[0]))


def test_the_important_are_those_of_h2o_where_none_was_rounded():
    """Until the shelf is full nothing is rounded, and its first choice is H2O's."""
    where = {}
    for knob in (MiKV(important=10, residual=0, block=20), H2O(heavy=10, residual=0, block=20)):
        where[knob.name] = grown(knob, 20).held.materialise(0)[2][0, :, :10].tolist()
    assert where["cache.mikv"] == where["cache.h2o"]


def test_shelves_hold_what_they_say():
    feed = grown(MiKV(low_bits=3, **SMALL))
    k, v, where = feed.held.materialise(0)
    truth = [x[0] for x in text(3, SHAPE, 150)]
    form = TokenForm(key_bits=3, value_bits=3, group=8, dim=8)
    rounded = form.decode(form.encode(*truth))
    for held, exact, low in zip((k[0], v[0]), truth, rounded, strict=True):
        for g in range(2):
            assert torch.equal(held[g, :10], exact[g, where[0, g, :10]])
            assert torch.equal(held[g, 10:], low[g, where[0, g, 10:]])


def test_keeping_the_rest_in_few_bits_beats_dropping_it():
    """The attention of queries that look at what was dropped, against the truth."""
    k, v = (x[0] for x in text(3, SHAPE, 200))
    errors = []
    for knob in (MiKV(low_bits=3, **SMALL), H2O(heavy=10, residual=4, block=4)):
        feed = grown(knob, 200)
        sealed = feed.held.sealed[0]
        q = k[:, 20:30].repeat_interleave(2, 0)[None] * 0.5
        want = torch.nn.functional.scaled_dot_product_attention(
            q, k[None, :, :sealed], v[None, :, :sealed], enable_gqa=True
        )
        out, _ = feed.held.attend(0, q, torch.full((1, 10), 200), 8**-0.5)
        errors.append(float((out - want).square().mean()))
    assert errors[0] < errors[1] / 10


def test_a_full_budget_is_exact():
    feed = grown(MiKV(important=4096, residual=0, block=10))
    k, v, _ = feed.held.materialise(0)
    assert torch.equal(torch.stack([k[0], v[0]]), torch.stack([x[0] for x in text(3, SHAPE, 150)]))
