"""cache.ems: what is alike merges and counts as often as it should; a naive reading agrees."""

import math

import pytest
import torch
from tier_contract import Feed, kv_shape, queries, text

from steno.cache._merge import Bag, Rule, fold
from steno.cache.ems import EMS


def bag(keys: list[list[float]], counts: list[int] | None = None) -> Bag:
    k = torch.tensor([keys])
    number = torch.tensor([counts or [1] * len(keys)], dtype=torch.int32)
    return Bag(k, k * 10, number, torch.ones(1, len(keys)))


def test_by_hand():
    """Two centres; the third token joins the one it points along, the fourth is like none, the fifth scores too low."""
    tokens = bag([[2.0, 0], [0, 2], [4, 1], [-3, -3], [0, 1]], counts=[3, 1, 1, 1, 1])
    scores = torch.tensor([[5.0, 4, 1, 1, 0.01]])
    out, stay = fold(tokens, scores, Rule(budget=2, similarity=0.6, floor=0.1))
    assert stay.tolist() == [[0, 1]]
    assert out.counts.tolist() == [[4, 1]]
    assert out.k.tolist() == [[[(3 * 2 + 4) / 4, 0.25], [0, 2]]]
    assert out.v.tolist() == [[[25, 2.5], [0, 20]]]
    assert out.had.tolist() == [[2, 1]]


def test_equal_keys_merge_without_loss_because_slots_are_counted():
    k = torch.tensor([[1.0, 0], [1, 0], [0, 1], [1, 0]])
    v = torch.tensor([[1.0, 2], [3, 4], [5, 6], [8, 0]])
    tokens = Bag(k[None], v[None], torch.ones(1, 4, dtype=torch.int32), torch.ones(1, 4))
    out, _ = fold(tokens, torch.tensor([[3.0, 1, 2, 1]]), Rule(budget=2, similarity=0.9, floor=0))
    q = torch.tensor([1.5, 0.3])
    want = (k @ q).softmax(0) @ v
    counted = (out.k[0] @ q + out.counts[0].float().log()).softmax(0) @ out.v[0]
    torch.testing.assert_close(counted, want)
    assert float(((out.k[0] @ q).softmax(0) @ out.v[0] - want).abs().max()) > 0.1


def naive(knob: EMS, feed: Feed, layer: int, length: int) -> list[list[tuple[int, int, float]]]:
    """(position, tokens, first key channel) of each slot, head by head, in float64."""
    k = text(feed.seeds[0], feed.shape, length)[0][layer].double()
    q = queries(feed.seeds[0], feed.shape, length)[layer].double()
    out = []
    for g in range(2):
        held: list[dict] = []
        start = 0
        for now in range(1, length + 1):
            end = knob.due(now)
            if end == start:
                continue
            held += [{"at": i, "k": k[g, i], "n": 1, "had": 0.0} for i in range(start, end)]
            local = [0.0] * len(held)
            for i in range(start, now):
                keys = [s["k"] for s in held] + [k[g, j] for j in range(end, now)]
                extra = torch.tensor([math.log(s["n"]) for s in held] + [0.0] * (now - end))
                seen = torch.tensor([s["at"] <= i for s in held] + [j <= i for j in range(end, now)])
                for r in range(2):
                    logits = torch.stack(keys) @ q[g * 2 + r, i] + extra
                    p = logits.masked_fill(~seen, -torch.inf).softmax(0)
                    for s, slot in enumerate(held):
                        slot["had"] += float(p[s]) / 2 if i < end else 0
                        local[s] += float(p[s]) if i >= now - knob.window else 0
            reach = knob.kernel // 2
            local = [max(local[max(0, s - reach) : s + reach + 1]) for s in range(len(held))]
            scale = sum(local) / sum(s["had"] for s in held)
            scores = [max(s["had"] * scale, c) for s, c in zip(held, local, strict=True)]
            mean = sum(scores) / len(scores)
            order = sorted(range(len(held)), key=lambda s: (-scores[s], s))
            into = [held[s] for s in sorted(order[: knob.budget])]
            found: list[tuple[dict, dict]] = []
            for s in sorted(order[knob.budget :]):
                alike = [float(torch.cosine_similarity(held[s]["k"], c["k"], 0)) for c in into]
                best = max(range(len(into)), key=lambda c: alike[c])
                if alike[best] > knob.similarity and scores[s] >= knob.floor / 100 * mean:
                    found.append((held[s], into[best]))
            for slot, centre in found:
                both = slot["n"] + centre["n"]
                centre["k"] = (centre["k"] * centre["n"] + slot["k"] * slot["n"]) / both
                centre["n"], centre["had"] = both, centre["had"] + slot["had"]
            held, start = into, end
        out.append([(s["at"], s["n"], float(s["k"][0])) for s in held])
    return out


@pytest.mark.parametrize("knob", [EMS(budget=9, window=3, kernel=3, residual=4, block=4, similarity=0.7)], ids=repr)
def test_a_naive_reading_agrees(knob):
    feed = Feed(knob, kv_shape(batch=1), seeds=[3])
    feed.grow(0, 64)
    merged = 0
    for layer in range(2):
        k, _, where, log_counts = feed.held.counted(layer)
        for g, want in enumerate(naive(knob, feed, layer, 64)):
            assert where[0, g].tolist() == [slot[0] for slot in want]
            assert log_counts[0, g].exp().round().int().tolist() == [slot[1] for slot in want]
            assert k[0, g, :, 0].tolist() == pytest.approx([slot[2] for slot in want], abs=1e-3)
            merged += sum(slot[1] > 1 for slot in want)
    assert merged


def test_no_likeness_is_eviction_alone():
    feed = Feed(EMS(budget=8, window=3, residual=4, block=4, similarity=2), kv_shape(batch=1), seeds=[3])
    feed.grow(0, 60)
    k, _, where, log_counts = feed.held.counted(1)
    assert where.shape == (1, 2, 8)
    assert not log_counts.any()
    for g in range(2):
        assert torch.equal(k[0, g], text(3, feed.shape, 60)[0][1, g, where[0, g].long()])


def test_a_full_budget_keeps_every_token_once():
    feed = Feed(EMS(budget=100, window=3, residual=4, block=4), kv_shape(batch=1), seeds=[3])
    feed.grow(0, 60)
    k, v, where, log_counts = feed.held.counted(0)
    assert where[0].tolist() == [list(range(56))] * 2
    assert not log_counts.any()
    assert torch.equal(k[0], text(3, feed.shape, 56)[0][0])
    assert torch.equal(v[0], text(3, feed.shape, 56)[1][0])
