"""cache.snap: what the window looks at stays, with its neighbours; a naive reading agrees."""

import pytest
import torch
from tier_contract import Feed, kv_shape, queries, text

from steno.cache.snap import Snap
from steno.core.errors import KnobError


def naive(knob: Snap, feed: Feed, layer: int, length: int) -> list[list[int]]:
    """Positions each key head holds, head by head, in float64."""
    k = text(feed.seeds[0], feed.shape, length)[0][layer].double()
    q = queries(feed.seeds[0], feed.shape, length)[layer].double()
    share = feed.shape.query_heads // feed.shape.key_heads
    out = []
    for g in range(feed.shape.key_heads):
        held: list[int] = []
        start = 0
        for now in range(1, length + 1):
            end = knob.due(now)
            if end == start:
                continue
            held = [*held, *range(start, end)]
            got = torch.zeros(len(held), dtype=torch.float64)
            for i in range(max(start, now - knob.window), now):
                seen = [j for j in [*held, *range(end, now)] if j <= i]
                for r in range(share):
                    p = (k[g, seen] @ q[g * share + r, i]).softmax(0)
                    got[: min(len(held), len(seen))] += p[: len(held)]
            reach = knob.kernel // 2
            pooled = [max(got[max(0, s - reach) : s + reach + 1]) for s in range(len(held))]
            best = sorted(range(len(held)), key=lambda s: (-float(pooled[s]), s))[: knob.budget]
            held = [held[s] for s in sorted(best)]
            start = end
        out.append(held)
    return out


def test_by_hand():
    """The window looks at key 5 of 8; with a kernel of 3 its neighbours stay too."""
    knob = Snap(budget=3, window=1, kernel=3, residual=1, block=8)
    tier = knob.open(kv_shape(batch=1, layers=1, heads=1, groups=1, dim=2, rope=None))
    k = torch.zeros(1, 9, 2)
    k[0, 5, 0] = 9
    q = torch.tensor([1.0, 0]).expand(1, 9, 2)
    tier.observe(0, 0, q, k)
    tier.seal(0, 0, k[:, :8], k[:, :8])
    assert tier.materialise(0)[2].tolist() == [[[4, 5, 6]]]


@pytest.mark.parametrize(
    "knob",
    [Snap(budget=9, window=3, kernel=1, residual=5, block=4), Snap(budget=12, window=6, kernel=5, residual=6, block=8)],
    ids=repr,
)
def test_the_kept_are_those_of_a_naive_reading(knob):
    feed = Feed(knob, kv_shape(batch=1), seeds=[3])
    feed.grow(0, 90)
    for layer in range(2):
        assert feed.held.materialise(layer)[2][0].tolist() == naive(knob, feed, layer, 90)


def test_open_keys_count_in_the_softmax():
    """A query that looks at an open key gives the sealed ones next to nothing, and another decides."""
    knob = Snap(budget=1, window=2, kernel=1, residual=2, block=2)
    tier = knob.open(kv_shape(batch=1, layers=1, heads=1, groups=1, dim=2, rope=None))
    k = torch.tensor([[[3.0, 0], [0, 2], [20, 0], [0, 0]]])
    # Token 2 looks along channel 0: mostly at itself, and at key 0 less. Token 3 looks along channel 1, at key 1.
    q = torch.tensor([[[0.0, 0], [0, 0], [1, 0], [0, 1]]])
    tier.observe(0, 0, q, k)
    tier.seal(0, 0, k[:, :2], k[:, :2])
    assert tier.materialise(0)[2].tolist() == [[[1]]]


def test_a_window_wider_than_the_residual_is_refused():
    with pytest.raises(KnobError, match=r"window must be at most residual \(16\), got 32.*snap.window=16"):
        Snap(residual=16)
