"""cache.h2o: the sums are those of a naive reading, and a token that was looked at outlives its neighbours."""

import torch
from tier_contract import Feed, kv_shape, queries, text

from steno.cache._ledger import resident_bytes
from steno.cache.h2o import H2O
from steno.core.tier import Observer


def naive(knob: H2O, feed: Feed, layer: int, length: int) -> list[list[int]]:
    """Positions each key head holds: token by token, head by head, in float64."""
    k = text(feed.seeds[0], feed.shape, length)[0][layer].double()
    q = queries(feed.seeds[0], feed.shape, length)[layer].double()
    share = feed.shape.query_heads // feed.shape.key_heads
    out = []
    for g in range(feed.shape.key_heads):
        score: dict[int, float] = {}
        start = 0
        for now in range(1, length + 1):
            end = knob.due(now)
            if end == start:
                continue
            score |= dict.fromkeys(range(start, end), 0.0)
            for i in range(start, end):
                seen = [j for j in score if j <= i]
                for r in range(share):
                    p = (k[g, seen] @ q[g * share + r, i]).softmax(0)
                    for j, x in zip(seen, p.tolist(), strict=True):
                        score[j] += x / share
            best = sorted(score, key=lambda j: (-score[j], j))[: knob.heavy]
            score = {j: score[j] for j in sorted(best)}
            start = end
        out.append(list(score))
    return out


def test_by_hand():
    """Two tokens of four stay. Query i looks at key 1 from then on, and at itself before."""
    knob = H2O(heavy=2, residual=0, block=2)
    tier = knob.open(kv_shape(batch=1, layers=1, heads=1, groups=1, dim=2, rope=None))
    assert isinstance(tier, Observer)
    k = torch.tensor([[[0.0, 0], [9, 0], [0, 0], [0, 0]]])
    q = torch.tensor([[[1.0, 0], [1, 0], [1, 0], [1, 0]]])
    for start in (0, 2):
        span = slice(start, start + 2)
        tier.observe(0, 0, q[:, span], k[:, span])
        tier.seal(0, 0, k[:, span], k[:, span])
    # Key 0 had 1 from its own query, key 1 nearly 1 from each of three others, keys 2 and 3 next to nothing.
    assert tier.materialise(0)[2].tolist() == [[[0, 1]]]
    torch.testing.assert_close(tier.storages()["ranks"][0], torch.tensor([[1.0, 3.0]]), atol=1e-2, rtol=0)


def test_the_kept_are_those_of_a_naive_reading():
    knob = H2O(heavy=9, residual=5, block=4)
    feed = Feed(knob, kv_shape(batch=1), seeds=[3])
    feed.grow(0, 90)
    for layer in range(2):
        want = naive(knob, feed, layer, 90)
        assert feed.held.materialise(layer)[2][0].tolist() == want
        assert want[0] != want[1]


def test_what_is_kept_is_what_came():
    feed = Feed(H2O(heavy=20, residual=8, block=4), kv_shape(batch=1, dtype=torch.bfloat16), seeds=[3])
    feed.grow(0, 200)
    k, v, where = feed.held.materialise(1)
    truth = [x[1].float() for x in text(3, feed.shape, 200)]
    for g in range(2):
        assert torch.equal(k[0, g], truth[0][g, where[0, g]])
        assert torch.equal(v[0, g], truth[1][g, where[0, g]])


def test_memory_does_not_grow():
    """Two heads of two layers, 16 tokens of 8 + 8 float32, a position and a sum."""
    feed = Feed(H2O(heavy=16, residual=8, block=4), kv_shape(batch=1), seeds=[3])
    for length in (40, 400):
        feed.grow(0, length)
        want = {"payload": 4 * 16 * 16 * 4, "positions": 4 * 16 * 4, "ranks": 4 * 16 * 4}
        assert resident_bytes(feed.held.storages()) == want


def test_a_budget_of_everything_keeps_everything():
    feed = Feed(H2O(heavy=4096, residual=0, block=8), kv_shape(batch=1), seeds=[3])
    feed.grow(0, 120)
    k, v, where = feed.held.materialise(0)
    assert where[0].tolist() == [list(range(120))] * 2
    assert torch.equal(torch.stack([k[0], v[0]]), torch.stack([x[0] for x in text(3, feed.shape, 120)]))
