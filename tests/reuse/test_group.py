"""reuse.group: read first and answered behind, it is plain; nothing ever moves, and a source never sees its answer."""

import keepers
import numpy as np
import pytest
from keepers import chain, same, text

from steno.core.errors import CapsError
from steno.reuse import Piece
from steno.reuse._groups import stream
from steno.reuse.group import Group

SOURCE, ANSWER = text(24), text(12, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("group")


@pytest.fixture(scope="module")
def model(folder):
    return keepers.pinned(folder)


@pytest.fixture(scope="module")
def free(model, folder):
    """The same model in wide forwards."""
    return keepers.load(keepers.ModelSpec(source=str(folder / "llama"), backend="hf", threads=1))


def pieces(*texts):
    return [Piece(tokens=tuple(t)) for t in texts]


def test_read_first_and_answered_behind_it_is_plain(model):
    """With the offset at the source's length, the groups are one row, however the answer was cut."""
    plain = model.open(1, 80)
    plain.prefill([[*SOURCE, *ANSWER]])
    want = chain(plain, [[7, 8]])[0]
    for cut in (12, 5):
        parts = pieces(SOURCE, ANSWER[:cut], (), ANSWER[cut:])
        woven = Group(offset=24).weave(model, parts, capacity=80)
        assert (woven.session.lengths, woven.computed) == ((36,), 36)
        np.testing.assert_allclose(chain(woven.session, [[7, 8]])[0], want, atol=2e-4)


def test_against_a_mask(model, free):
    """One forward over source and answer with every token's position and sight written out."""
    parts = pieces(SOURCE[:10], ANSWER[:5], SOURCE[10:], ANSWER[5:])
    woven = Group(offset=40).weave(model, parts, capacity=80)
    session = free.open(1, 80)
    read = [10] * 5 + [24] * 7 + [24]
    count = 24 + 13
    seen = np.tri(count, dtype=bool)[None].copy()
    for i, limit in enumerate(read):
        seen[0, 24 + i, limit:24] = False
    tokens = np.array([[*SOURCE, *ANSWER, 7]], np.int32)
    positions = np.array([[*range(24), *range(40, 53)]], np.int32)
    # A chain by its parents: its sight is what `visible` says.
    nodes = keepers.Nodes(
        tokens=tokens, parents=np.arange(-1, count - 1, dtype=np.int32)[None], positions=positions, visible=seen
    )
    want = np.array(session.forward(nodes).logits)[0, -1]
    np.testing.assert_allclose(chain(woven.session, [[7]])[0, 0], want, atol=2e-4)


def test_what_arrives_later_changes_nothing_before(model):
    """The answer to the first part is the same whatever comes next, and is not computed again for it."""
    first = Group(offset=30).weave(model, pieces(SOURCE[:10], ANSWER), capacity=80)
    later = Group(offset=30).weave(model, pieces(SOURCE[:10], ANSWER, SOURCE[10:]), capacity=80)
    assert first.session.lengths == later.session.lengths == (42,)
    one, two = (woven.session.save(0).arrays["tier.0.0"] for woven in (first, later))
    same(two[:, :, :, :10], one[:, :, :, :10])
    same(two[:, :, :, 24:], one[:, :, :, 10:])
    source = model.open(1, 24)
    source.prefill([SOURCE])
    same(two[:, 0, :, :24], source.read(0)[0])
    assert np.abs(chain(first.session, [[5]]) - chain(later.session, [[5]])).max() > 1e-3


def test_known_parts_are_kept(model):
    woven = Group(offset=30).weave(model, pieces(SOURCE, ANSWER), capacity=80)
    held = woven.session.save(0).arrays["tier.0.0"]
    known = [
        Piece(tokens=tuple(SOURCE), keys=held[:, 0, :, :24], values=held[:, 1, :, :24]),
        Piece(tokens=tuple(ANSWER), keys=held[:, 0, :, 24:], values=held[:, 1, :, 24:], at=30),
    ]
    again = Group(offset=30).weave(model, known, capacity=80)
    assert (again.computed, again.reused) == (0, 36)
    same(chain(again.session, [[5]]), chain(woven.session, [[5]]))


def test_a_form_is_refused(model):
    from steno.cache.affine import Affine

    with pytest.raises(CapsError, match="they take no cache form"):
        stream(model, pieces(SOURCE, ANSWER), 5, 80, Affine())
