"""reuse.pie: turns add up, the first layer's keys are those of the new text, and only what is new is computed."""

import keepers
import numpy as np
import pytest
import torch
from keepers import chain, opened, same, text

from steno.cache._turn import turn as turn_by_position
from steno.cache.affine import Affine
from steno.cache.window import Window
from steno.core import Rope
from steno.core.errors import CapsError
from steno.reuse import Piece
from steno.reuse._move import turn
from steno.reuse.pie import Edit, Pie, edited


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("keepers")
    return {
        "engine": keepers.engine(root / "native"),
        "pinned": keepers.pinned(root / "hf"),
        "gpt2": keepers.pinned(root / "gpt2", "gpt2"),
    }


def test_by_hand():
    """A quarter turn takes (1, 0) to (0, 1), and two of them to (-1, 0)."""
    rope = Rope(frequencies=(np.pi / 2,))
    keys = np.array([[1, 0, 9]], np.float32)
    np.testing.assert_allclose(turn(keys, rope, 1), [[0, 1, 9]], atol=1e-7)
    np.testing.assert_allclose(turn(keys, rope, 2), [[-1, 0, 9]], atol=1e-7)
    np.testing.assert_allclose(turn(turn(keys, rope, 1), rope, -1), keys, atol=1e-7)


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_turn_is_the_difference_of_two_places(interleaved):
    rope = Rope(frequencies=(1.0, 0.1, 0.01), interleaved=interleaved)
    raw = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    here, there = (turn_by_position(raw, rope, torch.arange(start, start + 5)).numpy() for start in (900, 437))
    np.testing.assert_allclose(turn(here, rope, 437 - 900), there, atol=1e-5)


@pytest.mark.parametrize("kind", ["engine", "pinned"])
def test_an_edit_that_changes_nothing_changes_no_bit(models, kind):
    ids = text(60)
    session = opened(models[kind], batch=1)
    session.prefill([ids])
    pieces = edited(session, 0, ids, [Edit(20, 25, tuple(ids[20:25])), Edit(40, 40)])
    assert [len(piece.tokens) for piece in pieces] == [20, 5, 15, 20]
    woven = Pie().weave(models[kind], pieces, capacity=160)
    assert (woven.computed, woven.reused) == (5, 55)
    same(chain(woven.session, [[9]]), chain(session, [[9]]))


@pytest.mark.parametrize("kind", ["engine", "pinned"])
def test_several_edits_against_a_reference(models, kind):
    """The first layer's keys and values are those of a full pass over the new text, which nothing above them is; what
    was reused is the old text's, turned as numbers in the complex plane.
    """
    model, ids = models[kind], text(70)
    session = opened(model, batch=1)
    session.prefill([ids])
    edits = [Edit(50, 58), Edit(10, 12, tuple(text(7, 1))), Edit(30, 30, tuple(text(3, 2)))]
    pieces = edited(session, 0, ids, edits)
    new = [*ids[:10], *text(7, 1), *ids[12:30], *text(3, 2), *ids[30:50], *ids[58:]]
    assert [t for piece in pieces for t in piece.tokens] == new
    woven = Pie().weave(model, pieces, capacity=160)
    assert (woven.computed, woven.reused) == (10, 60)
    full = opened(model, batch=1)
    full.prefill([new])
    (keys, values), (want, want_values) = woven.session.read(0), full.read(0)
    np.testing.assert_allclose(keys[0], want[0], atol=2e-5)
    np.testing.assert_allclose(values[0], want_values[0], atol=2e-5)
    same(keys[:, :, :17], want[:, :, :17])
    assert np.abs(keys[1:, :, 20:] - want[1:, :, 20:]).max() > 1e-3
    old, rope = session.read(0)[0], session.rope
    assert rope is not None
    for start, stop, delta in ((12, 30, 5), (30, 50, 8), (58, 70, 0)):
        a, b = np.split(old[:, :, start:stop].astype(np.float64), 2, -1)
        c, d = np.split(keys[:, :, start + delta : stop + delta].astype(np.float64), 2, -1)
        np.testing.assert_allclose(
            c + 1j * d, (a + 1j * b) * np.exp(1j * delta * np.array(rope.frequencies)), atol=1e-4
        )


@pytest.mark.parametrize("kind", ["engine", "pinned"])
def test_on_a_quantised_cache(models, kind):
    """What is turned is what attention saw, and it is encoded anew: within two roundings of the dense result."""
    form, ids = Affine(key_bits=8, value_bits=8, group=8, value_group=8, residual=8, block=8), text(60)
    done = []
    for cache in (None, form):
        session = opened(models[kind], cache, batch=1)
        session.prefill([ids])
        done.append(Pie().weave(models[kind], edited(session, 0, ids, [Edit(9, 9, (5, 6))]), capacity=160, form=cache))
    dense, sealed = (woven.session.read(0) for woven in done)
    assert done[1].session.whole
    assert 0 < np.abs(sealed[0] - dense[0]).max() < 0.05 * np.abs(dense[0]).max()


def test_refusals(models):
    ids = text(40)
    session = opened(models["engine"], batch=1)
    session.prefill([ids])
    with pytest.raises(ValueError, match="the edit of 8 to 12 overlaps another"):
        edited(session, 0, ids, [Edit(8, 12), Edit(5, 9)])
    with pytest.raises(ValueError, match="ends behind 40"):
        edited(session, 0, ids, [Edit(39, 41)])
    with pytest.raises(ValueError, match="holds 40 tokens, got 39 ids"):
        edited(session, 0, ids[1:], [])
    dropped = opened(models["engine"], Window(sinks=2, window=12, block=4), batch=1)
    dropped.prefill([ids])
    with pytest.raises(CapsError, match="does not hold every token in every head"):
        edited(dropped, 0, ids, [])
    learned = opened(models["gpt2"], batch=1)
    learned.prefill([ids])
    with pytest.raises(CapsError, match="how this model marks positions is not known"):
        Pie().weave(models["gpt2"], edited(learned, 0, ids, [Edit(5, 6)]), capacity=160)
    keys, values = learned.read(0)
    kept = Pie().weave(models["gpt2"], [Piece(tokens=tuple(ids), keys=keys, values=values)], capacity=160)
    same(chain(kept.session, [[3]]), chain(learned, [[3]]))
