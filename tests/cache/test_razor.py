"""cache.razor: retrieval heads keep all, the others the ends and a mean that counts as often as it should."""

import math

import pytest
import torch
from tier_contract import Feed, kv_shape, text

from steno.cache._ledger import resident_bytes
from steno.cache.razor import Razor, look_back
from steno.core.errors import KnobError

SMALL = {"window": 4, "share": 0, "sinks": 1, "residual": 0, "block": 4}


def test_by_hand():
    """Of 8 tokens stay 0 and 4 to 7; keys 1, 2, 3 leave the mean 2, which counts three times."""
    tier = Razor(**SMALL).open(kv_shape(batch=1, layers=1, heads=1, groups=1, dim=2, rope=None))
    k = torch.zeros(1, 8, 2)
    k[0, :, 0] = torch.tensor([0.0, 1, 2, 3, 0, 0, 0, 0])
    v = torch.zeros(1, 8, 2)
    v[0, 1:4, 1] = torch.tensor([3.0, 6, 9])
    for start in (0, 4):
        tier.seal(0, 0, k[:, start : start + 4], v[:, start : start + 4])
    held, _, where, log_counts = tier.counted(0)
    assert where.tolist() == [[[0, 4, 5, 6, 7, 3]]]
    assert held[0, 0, 5].tolist() == [2, 0]
    assert log_counts[0, 0].exp().tolist() == pytest.approx([1, 1, 1, 1, 1, 3])
    out, lse = tier.attend(0, torch.tensor([[[[1.0, 0]]]]), torch.tensor([[8]]), 1.0)
    total = 5 + 3 * math.exp(2)
    assert float(lse) == pytest.approx(math.log(total), rel=1e-5)
    assert out.flatten().tolist() == pytest.approx([0, 6 * 3 * math.exp(2) / total], rel=1e-5)


def naive(knob: Razor, feed: Feed, layer: int, head: int, q: torch.Tensor, length: int) -> torch.Tensor:
    """Algorithm 1 over the whole text, in float64."""
    k, v = (x[layer, head].double() for x in text(feed.seeds[0], feed.shape, knob.due(length)))
    end = len(k)
    near = range(max(0, end - max(knob.window, int(knob.share * end / 100))), end)
    kept = sorted({*range(min(knob.sinks, end)), *near})
    lost = [i for i in range(end) if i not in kept]
    e = (k[kept] @ q).exp()
    mean_k, mean_v = k[lost].mean(0), v[lost].mean(0)
    mass = len(lost) * (mean_k @ q).exp()
    return (e @ v[kept] + mass * mean_v) / (e.sum() + mass)


@pytest.mark.parametrize("share", [0.0, 30.0])
def test_a_naive_reading_agrees(share):
    knob = Razor(window=7, share=share, sinks=2, residual=3, block=5)
    feed = Feed(knob, kv_shape(batch=1), seeds=[3])
    feed.grow(0, 90)
    q, positions = feed.ask(1)
    for layer in range(2):
        out, _ = feed.held.attend(layer, q, positions, 0.1)
        for h in range(4):
            want = naive(knob, feed, layer, h // 2, q[0, h, 0].double() * 0.1, 90)
            torch.testing.assert_close(out[0, h, 0].double(), want, atol=1e-5, rtol=0)


def test_equal_dropped_keys_cost_nothing():
    """Where all dropped keys are the same, attention is that over the whole text; without compensation it is not."""
    k, v = (x[0, :1] for x in text(1, kv_shape(), 24))
    k[:, 1:20] = k[:, :1]
    q = torch.randn(1, 1, 3, 8, generator=torch.Generator().manual_seed(0))
    want = torch.nn.functional.scaled_dot_product_attention(q, k[None], v[None], scale=0.35)
    gaps = []
    for compensate in (True, False):
        knob = Razor(**SMALL, compensate=compensate)
        tier = knob.open(kv_shape(batch=1, layers=1, heads=1, groups=1))
        for start in range(0, 24, 4):
            tier.seal(0, 0, k[:, start : start + 4], v[:, start : start + 4])
        gaps.append(float((tier.attend(0, q, torch.full((1, 3), 24), 0.35)[0] - want).abs().max()))
    assert gaps[0] < 1e-5
    assert gaps[1] > 0.05


def test_retrieval_heads_hold_every_bit_and_only_they():
    shape = kv_shape(batch=1)
    feed = Feed(Razor(heads=(1, 2), **SMALL), shape, seeds=[5])
    feed.grow(0, 40)
    truth = text(5, shape, 40)
    for layer, whole in ((0, 1), (1, 0)):
        k, v, where, _ = feed.held.counted(layer)
        assert (where[0] >= 0).sum(1).tolist() == [40 if head == whole else 6 for head in range(2)]
        assert torch.equal(k[0, whole], truth[0][layer, whole])
        assert torch.equal(v[0, whole], truth[1][layer, whole])
    # Two layers, a head of each: all 40 tokens, or 5 and a mean, its number and its place.
    assert resident_bytes(feed.held.storages()) == {
        "positions": 2 * (40 + 5) * 4, "payload": 2 * (40 + 5) * 2 * 8 * 4,
        "mean": 2 * 2 * 8 * 4, "number": 2 * 4, "newest": 2 * 4,
    }  # fmt: skip


def test_a_head_that_looks_behind_the_earlier_copy_is_told_from_one_that_looks_at_it():
    """A text of 5 tokens four times over; keys are one-hot of the token, queries ask for a token."""
    ids = torch.arange(20) % 5
    k = torch.nn.functional.one_hot(ids, 5).float()[None]
    same = torch.nn.functional.one_hot(ids, 5).float() * 50
    after = torch.nn.functional.one_hot((ids + 1) % 5, 5).float() * 50
    echo, induction = look_back(torch.stack([same, after]), k, 5)
    # A token also sees itself: of 2, 3 and 4 equal keys, 1, 2 and 3 are earlier copies.
    assert echo.tolist() == pytest.approx([(1 / 2 + 2 / 3 + 3 / 4) / 3, 0], abs=1e-6)
    assert induction.tolist() == pytest.approx([0, 1], abs=1e-6)


def test_heads_of_another_model_are_refused():
    with pytest.raises(KnobError, match=r"heads must be below 4 on this model, got 4\. Measure them .*with_heads"):
        Razor(heads=(0, 4)).open(kv_shape())
