"""cache.prefixkv: the layers' budgets make one share of attention, and heads keep the same tokens."""

import torch
from tier_contract import Feed, kv_shape, queries, text

from steno.cache._witness import Seen, received
from steno.cache.prefixkv import PrefixKV, divide, equal_share


def test_by_hand():
    """One layer with all its attention on a token, one with it spread over four."""
    assert equal_share([[0.1, 0.7, 0.1, 0.1], [0.25] * 4], 2) == [1, 3]
    assert divide(10, (), 3) == [10, 10, 10]
    assert divide(10, (2.0, 1.0), 2) == [13, 7]


def test_equal_layers_have_equal_budgets_and_all_of_it_is_all():
    noise = torch.Generator().manual_seed(0)
    layer = torch.rand(40, generator=noise).tolist()
    assert equal_share([layer] * 5, 12) == [12] * 5
    assert equal_share([layer, torch.rand(40, generator=noise).tolist()], 40) == [40, 40]


def test_no_larger_share_fits():
    """Each layer is at its first token past the share, and one step more for all is over the budget."""
    noise = torch.Generator().manual_seed(1)
    mass = [(torch.rand(60, generator=noise) ** power).tolist() for power in (1, 4, 16)]
    kept = equal_share(mass, 20)
    assert 20 * 3 - 3 <= sum(kept) <= 20 * 3
    assert kept == sorted(kept, reverse=True)
    shares = [sum(sorted(m, reverse=True)[:n]) / sum(m) for m, n in zip(mass, kept, strict=True)]
    before = [sum(sorted(m, reverse=True)[: n - 1]) / sum(m) for m, n in zip(mass, kept, strict=True)]
    assert max(before) < min(shares)


def test_the_division_loses_nothing():
    for layers in (1, 2, 7, 32):
        for shares in ((1.0,), (0.5, 2.0, 0.5), (3.0, 1.0)):
            sizes = divide(100, shares, layers)
            assert len(sizes) == layers
            assert abs(sum(sizes) - 100 * layers) <= 1


def test_layers_keep_what_they_are_given_and_heads_agree():
    feed = Feed(PrefixKV(budget=12, shares=(1.0, 2.0), residual=4, block=4), kv_shape(batch=1), seeds=[3])
    feed.grow(0, 120)
    for layer, most in ((0, 8), (1, 16)):
        where = feed.held.materialise(layer)[2][0].tolist()
        assert where[0] == where[1]
        assert len(where[0]) == most
        assert where[0][:4] == [0, 1, 2, 3]


def test_attention_received_is_that_of_a_naive_reading():
    shape = kv_shape(batch=1, layers=1)
    k, v = (x[0] for x in text(3, shape, 30))
    q = queries(3, shape, 30)[0]
    want = torch.zeros(30)
    for h in range(4):
        for i in range(30):
            want[: i + 1] += (k[h // 2, : i + 1] @ q[h, i]).softmax(0)
    torch.testing.assert_close(received(Seen(q, k, v)), want / 4 / 30, atol=1e-5, rtol=0)
