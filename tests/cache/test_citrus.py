"""cache.citrus: what the instruction looks at stays, asked from where the text now stands."""

import pytest
import torch
from tier_contract import Feed, kv_shape, queries, text

from steno.cache._turn import turn
from steno.cache.citrus import Citrus
from steno.core.errors import KnobError


def test_by_hand():
    """The instruction asks for channel 1; the newest tokens ask for channel 0, and that counts for nothing."""
    knob = Citrus(budget=3, instruction=1, residual=1, block=4)
    tier = knob.open(kv_shape(batch=1, layers=1, heads=1, groups=1, dim=2, rope=None))
    k = torch.tensor([[[0.0, 0], [9, 0], [0, 5], [9, 1], [9, 0], [0, 7], [9, 0], [9, 0], [0, 0]]])
    q = torch.tensor([[[0.0, 1], *[[1.0, 0]] * 8]])
    for start, held in ((0, [0, 2, 3]), (4, [0, 2, 5])):
        tier.observe(0, 0, q[:, start : start + 5], k[:, start : start + 5])
        tier.seal(0, 0, k[:, start : start + 4], k[:, start : start + 4])
        assert tier.materialise(0)[2].tolist() == [[held]]


def naive(knob: Citrus, feed: Feed, layer: int, length: int) -> list[list[int]]:
    """Positions each key head holds, in float64: the instruction's queries, computed at the end of the text so far."""
    k = text(feed.seeds[0], feed.shape, length)[0][layer].double()
    q = queries(feed.seeds[0], feed.shape, length)[layer][:, : knob.instruction]
    out = []
    for g in range(2):
        held: list[int] = []
        start = 0
        for now in range(1, length + 1):
            end = knob.due(now)
            if end == start:
                continue
            held += range(start, end)
            got = torch.zeros(len(held), dtype=torch.float64)
            for h in (2 * g, 2 * g + 1):
                asks = turn(q[h], feed.shape.rope, torch.full((knob.instruction,), now)) if feed.shape.rope else q[h]
                for ask in asks.double():
                    got += (k[g, held] @ ask).softmax(0)
            order = sorted(range(len(held)), key=lambda s: (held[s] >= knob.instruction, -float(got[s]), s))
            held, start = [held[s] for s in sorted(order[: knob.budget])], end
        out.append(held)
    return out


@pytest.mark.parametrize("turned", [True, False])
def test_the_kept_are_those_of_a_naive_reading(turned):
    knob = Citrus(budget=11, instruction=3, residual=5, block=4)
    shape = kv_shape(batch=1) if turned else kv_shape(batch=1, rope=None)
    feed = Feed(knob, shape, seeds=[3])
    feed.grow(0, 90)
    for layer in range(2):
        held = feed.held.materialise(layer)[2][0].tolist()
        assert held == naive(knob, feed, layer, 90)
        assert all(row[:3] == [0, 1, 2] for row in held)


def test_queries_of_the_instruction_are_all_that_is_added():
    knob = Citrus(budget=20, instruction=3, residual=5, block=4)
    feed = Feed(knob, kv_shape(batch=1), seeds=[3])
    feed.grow(0, 90)
    sizes = {name: sum(t.numel() for t in found) for name, found in feed.held.storages().items()}
    # Two layers of four query and two key heads of 8 channels.
    assert sizes == {"asks": 2 * 4 * 3 * 8, "positions": 2 * 2 * 20, "payload": 2 * 2 * 20 * 2 * 8}


def test_an_instruction_that_is_never_seen_whole_is_refused():
    match = r"instruction must be at most budget \(40\) and residual \+ block \(12\), got 13.*instruction=12"
    with pytest.raises(KnobError, match=match):
        Citrus(budget=40, residual=8, block=4, instruction=13)
