"""reuse.vlcache: all of it is plain prefill, none of it is reuse, and what is computed is the first of each piece."""

import keepers
import numpy as np
import pytest
from keepers import chain, opened, same, text

from steno.reuse import Piece
from steno.reuse.pie import Pie
from steno.reuse.vlcache import VLCache

SHARED, ONE, TWO = text(9), text(20, 1), text(13, 2)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("keepers")
    return {"engine": keepers.engine(root / "native"), "pinned": keepers.pinned(root / "hf")}


def known(model, ids, behind=()) -> Piece:
    """A piece computed behind another text."""
    session = opened(model, batch=1)
    session.prefill([[*behind, *ids]])
    keys, values = session.read(0, len(behind))
    return Piece(tokens=tuple(ids), keys=keys, values=values, at=len(behind))


def woven(knob, model, *pieces):
    return knob.weave(model, pieces, capacity=160)


@pytest.mark.parametrize("kind", ["engine", "pinned"])
def test_all_computed_is_plain_and_none_is_reuse(models, kind):
    model = models[kind]
    pieces = known(model, SHARED), Piece(tokens=tuple(ONE)), known(model, TWO, SHARED)
    full = opened(model, batch=1)
    full.prefill([[*SHARED, *ONE, *TWO]])
    every, none = (woven(VLCache(share=share), model, *pieces) for share in (100, 0))
    assert (every.computed, every.reused) == (33, 9)
    same(chain(every.session, [[5]]), chain(full, [[5]]))
    assert (none.computed, none.reused) == (20, 22)
    same(chain(none.session, [[5]]), chain(woven(Pie(), model, *pieces).session, [[5]]))


def test_the_first_tokens_are_those_of_the_new_text(models):
    """By hand: 25 % of 13 tokens is 4, rounded up. They are exact, the ones behind are the old text's."""
    model = models["engine"]
    piece = known(model, TWO, ONE)
    got = woven(VLCache(share=25), model, Piece(tokens=tuple(SHARED)), piece)
    assert (got.computed, got.reused) == (9 + 4, 9)
    full = opened(model, batch=1)
    full.prefill([[*SHARED, *TWO]])
    (_, values), (_, want) = got.session.read(0), full.read(0)
    same(values[:, :, :13], want[:, :, :13])
    same(values[:, :, 13:], piece.values[:, :, 4:])
    assert np.abs(values[-1, :, 13:] - want[-1, :, 13:]).max() > 1e-3


def test_a_prefix_is_exact_as_it_is(models):
    """The same prefix at its own place: no share of it is computed, and no bit differs."""
    model = models["engine"]
    got = woven(VLCache(share=50), model, known(model, [*SHARED, *ONE]), Piece(tokens=tuple(TWO)))
    full = opened(model, batch=1)
    full.prefill([[*SHARED, *ONE, *TWO]])
    assert (got.computed, got.reused) == (13, 29)
    same(chain(got.session, [[5]]), chain(full, [[5]]))


def test_an_empty_piece_and_a_tiny_share(models):
    model = models["engine"]
    got = woven(VLCache(share=0.1), model, Piece(tokens=()), known(model, ONE, SHARED))
    assert (got.computed, got.reused) == (1, 19)
