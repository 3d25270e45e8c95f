"""cache.sentencekv: sentences are found by their mean keys, and loaded whole and in order."""

import pytest
import torch
from tier_contract import Feed, kv_shape, queries, text, tokens

from steno.cache._recall import Passages
from steno.cache.sentencekv import SentenceKV, with_ends
from steno.models import NIB
from steno.tokens import load


def test_by_hand():
    """Three sentences of two tokens and one under way; the one under way looks like the second."""
    knob = SentenceKV(pool=8, budget=2, ends=(1,), sinks=0, window=1, kernel=1, residual=1, block=6)
    tier = knob.open(kv_shape(batch=1, layers=1, heads=1, groups=1, dim=2, rope=None))
    k = torch.tensor([[[9.0, 0], [0, 0], [1, 3], [0, 3], [0, 5], [0, -5], [0, 0]]])
    q = torch.tensor([[*[[9.0, 0]] * 6, [0, 1]]])
    tier.read(0, torch.tensor([5, 1, 5, 1, 5, 1, 7]))
    tier.observe(0, 0, q, k)
    tier.seal(0, 0, k[:, :6], k[:, :6])
    assert tier.materialise(0)[2].tolist() == [[[2, 3]]]
    # Everything is still held, and would be seen if another sentence were asked for.
    assert tier.storages()["payload"][0].shape == (1, 6, 2, 2)


def test_where_passages_end():
    rule = Passages(ends=frozenset({1}), longest=3, budget=1, sinks=0)
    assert rule.cut([1, 2, 2, 1, 2, 2, 2, 2], first=10, begun=9) == [10, 13, 16]
    assert rule.cut([2, 2], first=10, begun=9) == [11]


def naive(knob: SentenceKV, feed: Feed, layer: int, head: int, length: int) -> list[int]:
    """Positions seen after `length` tokens, all of which the pool has taken."""
    k = text(feed.seeds[0], feed.shape, length)[0][layer, head].double()
    q = queries(feed.seeds[0], feed.shape, length)[layer, 2 * head : 2 * head + 2].double()
    number, at, begun, ids = [0], 0, 0, tokens(feed.seeds[0], length).tolist()
    for place in range(length - 1):
        if ids[place] in knob.ends or place - begun + 1 >= knob.longest:
            at, begun = at + 1, place + 1
        number.append(at)
    end = knob.due(length)
    asked = q[:, max(number.index(number[-1]), feed.start) :].mean((0, 1))
    likeness = {s: float(k[[i for i in range(end) if number[i] == s]].mean(0) @ asked) for s in set(number[:end])}
    order = sorted(range(end), key=lambda i: (i >= knob.sinks, -likeness[number[i]], number[i], i))
    return sorted(order[: knob.budget])


@pytest.mark.parametrize("longest", [1, 4, 50])
def test_a_naive_reading_agrees(longest):
    """With sentences of one token it is exact retrieval by q . k."""
    knob = SentenceKV(
        pool=200, budget=11, ends=(3, 8, 19), longest=longest, sinks=2, window=2, kernel=1, residual=6, block=5
    )
    for length in (11, 16, 46, 91):
        feed = Feed(knob, kv_shape(batch=1), seeds=[3])
        feed.start = knob.due(length - 1)
        feed.grow(0, length)
        for layer in range(2):
            where = feed.held.materialise(layer)[2][0].tolist()
            assert where == [naive(knob, feed, layer, head, length) for head in range(2)]


def test_a_budget_of_the_pool_shows_all_of_it():
    feed = Feed(SentenceKV(pool=200, budget=200, window=2, residual=4, block=8), kv_shape(batch=1), seeds=[3])
    feed.grow(0, 60)
    assert feed.held.materialise(0)[2][0].tolist() == [list(range(56))] * 2


def test_what_comes_back_was_held_all_along():
    """Passages leave sight and come back; the pool never holds more than it may."""
    feed = Feed(SentenceKV(pool=40, budget=8, longest=4, window=2, residual=4, block=8), kv_shape(batch=1), seeds=[3])
    before, gone, back = set(), set(), set()
    for length in range(12, 120, 8):
        feed.grow(0, length)
        now = set(feed.held.materialise(0)[2][0, 0].tolist())
        back |= now & gone
        gone |= before - now
        before = now
        assert all(part.shape[1] <= 40 for part in feed.held.storages()["payload"])
    assert back


def test_ends_of_a_tokenizer():
    knob = with_ends(SentenceKV(), load(NIB), marks=("\n",))
    assert knob.ends == SentenceKV.points[0]["ends"]
