"""reuse.ape and reuse.parallel: one context is no approximation, order does not matter, and the mix is what it says."""

import keepers
import numpy as np
import pytest
import torch
from keepers import chain, same, text

from steno.core import KVShape
from steno.core.errors import CapsError
from steno.reuse import Piece
from steno.reuse._parallel import Mix, ParallelForm, best
from steno.reuse.ape import Ape
from steno.reuse.parallel import Parallel

PLAIN = Ape(temperature=1.0, scale=1.0)
SHARED, ONE, TWO, THREE = tuple(text(9)), tuple(text(20, 1)), tuple(text(13, 2)), tuple(text(20, 3))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return keepers.pinned(tmp_path_factory.mktemp("ape"))


def pieces(*texts):
    return [Piece(tokens=tuple(t)) for t in texts]


def after(knob, model, *texts, tail=(7, 8, 9)):
    return chain(knob.weave(model, pieces(*texts), capacity=120).session, [tail])[0]


def tier(parts, mix, dim=2):
    """One layer, one head: parts are (k, v) [T, D]."""
    shape = KVShape(
        batch=1, layers=1, query_heads=1, key_heads=1, head_dim=dim, capacity=64, dtype=torch.float32,
        device=torch.device("cpu"),
    )  # fmt: skip
    length = parts[0][0].shape[0] + max(k.shape[0] for k, _ in parts[1:])
    out = ParallelForm(length, mix).open(shape)
    tensors = {f"0.{i}": torch.stack([k, v])[None, :, None] for i, (k, v) in enumerate(parts)}
    out.load(tensors, {"sealed": [length], "parts": [len(parts)]})
    return out


def test_by_hand():
    """Prefix score 0, contexts with scores ln 2 and ln 4. At T = 1/2 they count 4 and 16; at S = 2 the merged 20 stays,
    since S T = 1. Then 1 : 4 : 16 is how values are mixed.
    """
    k = [torch.tensor([[x, 0.0]]) for x in (0.0, np.log(2), np.log(4))]
    v = [torch.tensor([[x, 1.0]]) for x in (0.0, 21.0, 42.0)]
    held = tier([*zip(k, v, strict=True)], Mix(temperature=0.5, scale=2.0))
    out, lse = held.attend(0, torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[2]]), 1.0)
    np.testing.assert_allclose(out[0, 0, 0], [(4 * 21 + 16 * 42) / 21, 1], rtol=1e-5)
    np.testing.assert_allclose(lse[0, 0, 0], np.log(21), rtol=1e-5)


def test_against_a_reference():
    """Temperature and scale on contexts alone, in float64, over many heads' worth of noise."""
    noise = torch.Generator().manual_seed(3)
    parts = [tuple(torch.randn(2, n, 8, generator=noise)) for n in (3, 5, 1, 4)]
    q = torch.randn(1, 1, 6, 8, generator=noise)
    out, lse = tier(parts, Mix(temperature=0.8, scale=0.7), dim=8).attend(0, q, torch.zeros(1, 6), 0.3)
    for w in range(6):
        x = q[0, 0, w].double() * 0.3
        near, far = parts[0][0].double() @ x, torch.cat([k for k, _ in parts[1:]]).double() @ x / 0.8
        reach = far.logsumexp(0) * 0.7 * 0.8
        total = torch.logaddexp(near.logsumexp(0), reach)
        mean = far.softmax(0) @ torch.cat([v for _, v in parts[1:]]).double()
        want = (near - total).exp() @ parts[0][1].double() + (reach - total).exp() * mean
        torch.testing.assert_close(out[0, 0, w].double(), want, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(lse[0, 0, w].double(), total, atol=1e-5, rtol=1e-5)


def test_one_context_is_read_in_turn(model):
    plain = model.open(1, 120)
    plain.prefill([[*SHARED, *ONE]])
    np.testing.assert_allclose(after(PLAIN, model, SHARED, ONE), chain(plain, [[7, 8, 9]])[0], atol=2e-4)
    assert np.abs(after(Ape(), model, SHARED, ONE) - after(PLAIN, model, SHARED, ONE)).max() > 1e-3


@pytest.mark.parametrize("knob", [Ape(), Parallel(select=2)], ids=lambda knob: knob.name)
def test_order_does_not_matter(model, knob):
    want = after(knob, model, SHARED, ONE, TWO, THREE)
    np.testing.assert_allclose(after(knob, model, SHARED, THREE, ONE, TWO), want, atol=2e-4)
    assert np.abs(after(knob, model, SHARED, ONE, TWO) - want).max() > 1e-3


def test_known_contexts_are_not_computed_again(model):
    """Computed elsewhere, at other positions, they are turned and give the same text."""
    alone = PLAIN.weave(model, pieces(SHARED, ONE), capacity=120).session
    dense = model.open(1, 120)
    dense.prefill([[*SHARED, *ONE]])
    keys, values = dense.read(0)
    known = Piece(tokens=(*SHARED, *ONE), keys=keys, values=values)
    woven = Ape().weave(model, [known.cut(0, 9), known.cut(9), Piece(tokens=TWO)], capacity=120)
    assert (woven.computed, woven.reused) == (13, 29)
    assert woven.session.lengths == alone.lengths == (29,)
    np.testing.assert_allclose(
        chain(woven.session, [[7, 8]])[0], after(Ape(), model, SHARED, ONE, TWO, tail=(7, 8)), atol=1e-5
    )


def test_contexts_may_be_longer_together_than_the_model(model):
    """Eleven contexts of 20 tokens, with room for 40."""
    woven = Ape().weave(model, pieces(SHARED, *[ONE] * 11), capacity=40)
    assert (woven.session.lengths, woven.computed) == ((29,), 229)
    assert np.isfinite(chain(woven.session, [[5]])).all()
    assert woven.session.cache_bytes()["payload"] == 229 * 2 * 3 * 2 * 8 * 4


def test_a_woven_row_goes_on_and_forks(model):
    woven = Ape().weave(model, pieces(SHARED, ONE, TWO), capacity=120).session
    twin = woven.fork([0])
    woven.prefill([[5, 6, 7]])
    twin.forward(keepers.Nodes(tokens=np.array([[5, 6, 7]], np.int32), parents=np.array([[-1, 0, 1]], np.int32)))
    twin.commit([[0, 1, 2]])
    same(chain(woven, [[9]]), chain(twin, [[9]]))
    assert woven.lengths == (32,)


def test_the_best_contexts_by_hand():
    """Of three contexts a query takes the two of the largest mass; of equals the first."""
    parts = [
        (torch.full((2, 1), float(i)), torch.tensor(lse)) for i, lse in enumerate(([1.0, 5.0], [3.0, 5.0], [2.0, 5.0]))
    ]
    shut = [lse.isinf().tolist() for _, lse in best(parts, 2)]
    assert shut == [[True, False], [False, False], [False, True]]


def test_all_contexts_selected_is_plain(model):
    texts = SHARED, ONE, TWO, THREE
    same(after(Parallel(select=0), model, *texts), after(PLAIN, model, *texts))
    same(after(Parallel(select=3), model, *texts), after(PLAIN, model, *texts))
    assert np.abs(after(Parallel(select=1), model, *texts) - after(PLAIN, model, *texts)).max() > 1e-3


def test_fewer_contexts_less_entropy():
    """Attention's entropy over contexts of equal scores falls as fewer of them are looked at."""
    noise = torch.Generator().manual_seed(0)
    parts = [tuple(torch.randn(2, 4, 8, generator=noise)) for _ in range(5)]
    q = torch.randn(1, 1, 1, 8, generator=noise)
    entropies = []
    for select in (0, 3, 2, 1):
        keys = torch.cat([k for k, _ in parts])
        marks = torch.eye(20)
        seen = [(k, marks[i * 4 : i * 4 + 4]) for i, (k, _) in enumerate(parts)]
        wide = [(torch.nn.functional.pad(k, (0, 12)), m) for k, m in seen]
        held = tier(wide, Mix(select=select), dim=20)
        p = held.attend(0, torch.nn.functional.pad(q, (0, 12)), torch.zeros(1, 1), 1.0)[0][0, 0, 0]
        assert keys.shape[0] == p.shape[0]
        torch.testing.assert_close(p.sum(), torch.tensor(1.0))
        entropies.append(-(p * p.clamp(min=1e-30).log()).sum().item())
    assert entropies == sorted(entropies, reverse=True)
    assert entropies[0] > entropies[-1] + 0.1


def test_refusals(model):
    from steno.cache.affine import Affine

    with pytest.raises(CapsError, match="they take no cache form"):
        Ape().weave(model, pieces(SHARED, ONE), capacity=120, form=Affine())
    woven = Ape().weave(model, pieces(SHARED, ONE), capacity=120).session
    with pytest.raises(CapsError):
        woven.crop([5])
    with pytest.raises(CapsError, match="does not hold every token"):
        woven.read(0)
