"""cache.window: what is visible is what the definition says, and memory is freed only of what nobody can see."""

import pytest
import torch
from tier_contract import Feed, kv_shape, text

from steno.cache._ledger import resident_bytes
from steno.cache._lse import attend, merge
from steno.cache.window import Window

KNOBS = [Window(sinks=2, window=6, block=4), Window(sinks=0, window=1, block=1), Window(sinks=9, window=3, block=7)]


def allowed(knob: Window, query: int, key: int) -> bool:
    return key <= query and (key in range(knob.sinks) or key in range(query - knob.window + 1, query + 1))


@pytest.mark.parametrize("knob", KNOBS, ids=repr)
def test_brute_force_visibility(knob):
    positions = torch.arange(40)
    seen = knob.sees(positions[:, None], positions[None, :]) & (positions[:, None] >= positions[None, :])
    assert seen.tolist() == [[allowed(knob, q, k) for k in range(40)] for q in range(40)]


@pytest.mark.parametrize("knob", KNOBS, ids=repr)
def test_what_leaves_is_never_seen_again_and_leaves_soon(knob):
    for length in range(60):
        due = knob.due(length)
        assert not any(allowed(knob, q, k) for q in range(length, 90) for k in range(knob.sinks, due))
        # The open buffer holds the window and at most one block more.
        assert length - due <= knob.window + knob.block


@pytest.mark.parametrize("knob", KNOBS, ids=repr)
def test_tier_and_open_buffer_together_are_the_masked_softmax(knob):
    shape = kv_shape(batch=1, layers=1, heads=4, groups=2)
    feed = Feed(knob, shape, seeds=[3])
    for length in range(1, 50):
        feed.grow(0, length)
        sealed = feed.held.sealed[0]
        k, v = (x[0] for x in text(3, shape, length))
        q, positions = feed.ask(1, salt=length)
        far = feed.held.attend(0, q, positions, 0.5)
        where = torch.arange(sealed, length)
        asked = (q[0] * 0.5).reshape(2, 2, 8)
        parts = [(far[0].view(2, 2, 8), far[1].view(2, 2))]
        if sealed < length:
            parts.append(attend(asked, k[:, sealed:], v[:, sealed:], knob.sees(positions[0, :, None], where[None])))
        out, _ = merge(parts)
        visible = torch.tensor([allowed(knob, length, key) for key in range(length)])
        scores = (asked.double() @ k.double().mT).masked_fill(~visible, -torch.inf)
        want = torch.nan_to_num(scores.softmax(-1)) @ v.double()
        torch.testing.assert_close(out.double(), want, atol=1e-5, rtol=1e-5)


def test_memory_does_not_grow_with_the_text():
    knob = Window(sinks=4, window=64, block=16)
    feed = Feed(knob, kv_shape(batch=1, groups=2, dim=8), seeds=[1])
    sizes = []
    for length in (100, 1000, 4000):
        feed.grow(0, length)
        sizes.append(resident_bytes(feed.held.storages()))
        assert length - feed.held.sealed[0] < 64 + 16
    # k and v of 4 sinks, 2 heads of 8 channels, float32, in 2 layers.
    assert sizes == [{"payload": 2 * 4 * 2 * 8 * 4 * 2}] * 3
    assert torch.equal(feed.held.materialise(0)[2], torch.arange(4)[None])


def test_sinks_keep_their_numbers():
    feed = Feed(Window(sinks=5, window=8, block=2), kv_shape(batch=1, dtype=torch.bfloat16), seeds=[1])
    for length in range(1, 40):
        feed.grow(0, length)
    k, v, _ = feed.held.materialise(1)
    want = text(1, feed.shape, 5)
    assert torch.equal(k[0], want[0][1].float())
    assert torch.equal(v[0], want[1][1].float())


def test_a_window_of_the_capacity_changes_nothing():
    knob = Window(window=4096)
    assert knob.due(4095) == 0
    positions = torch.arange(4096)
    assert knob.sees(positions[-1:, None], positions[None]).all()
