"""Cache forms in the engine: the contract, what it keeps against what the hf tier keeps, forks, bytes, refusals."""

import native_tiny
import numpy as np
import pytest
from contract import CHECKS, Subject, chains
from native_tiny import chain, forest, ids

from steno.cache import CacheKnob
from steno.cache.affine import Affine
from steno.cache.dense import Dense
from steno.cache.half import Half
from steno.cache.window import Window
from steno.core import KVShape, Keeps, Nodes, room
from steno.core.errors import CapsError, KnobError, ModelError
from steno.models import _engine, native

torch = pytest.importorskip("torch")

FORMS = [
    Affine(key_bits=8, value_bits=8, group=16, residual=0, block=16),
    Affine(key_bits=4, value_bits=2, group=8, value_group=8, residual=8, block=8),
    Affine(key_bits=3, value_bits=3, group=12, value_group=16, residual=12, block=24),
    Affine(key_bits=2, value_bits=4, group=32, residual=0, block=32),
    Half(block=16),
    Half(residual=3, block=5),
    Window(sinks=2, window=12, block=4),
    Window(sinks=0, window=1, block=1),
]
CODED = [form for form in FORMS if not isinstance(form, Window)]
LAYERS, HEADS, GROUPS = 3, 6, 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("native-cache")
    for name in ("llama", "mistral", "llama-tied-biased", "qwen3"):
        native_tiny.make(name, root / name)
    return root


@pytest.fixture(autouse=True)
def strict(monkeypatch):
    """Memory that must not be read is NaN, and every thread is used."""
    monkeypatch.setenv("STENO_POISON", "1")
    _engine.insist_on_threads(True)
    yield
    _engine.insist_on_threads(False)


def load(folders, name="llama", weights="fp32"):
    return native.load(folders / name, weights=weights, threads=2)


def same(got, want):
    np.testing.assert_array_equal(np.asarray(got).view(np.uint32), np.asarray(want).view(np.uint32))


@pytest.mark.parametrize("form", FORMS, ids=repr)
@pytest.mark.parametrize("name", ["llama", "mistral"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_contract(folders, check, name, form):
    check(Subject(model=load(folders, name), atol=0.0, cache=form))


def tier_of(form, dim, layers=LAYERS):
    shape = KVShape(
        batch=1, layers=layers, query_heads=HEADS, key_heads=GROUPS, head_dim=dim, capacity=640,
        dtype=torch.float32, device=torch.device("cpu"),
    )  # fmt: skip
    return form.open(shape)


@pytest.mark.parametrize("form", CODED, ids=repr)
@pytest.mark.parametrize(("name", "dim"), [("llama", 8), ("llama-tied-biased", 64), ("qwen3", 128)])
def test_keeps_the_numbers_of_the_hf_tier(folders, form, name, dim):
    """Before each seal the keys and values are open to be read; the tier is handed the same."""
    session = load(folders, name).open(1, 200, form)
    tier = tier_of(form, dim)
    at, sealed = 0, 0
    for token in ids(130):
        session.forward(chains([token]))
        before = [session._engine.kept(0, layer) for layer in range(LAYERS)]
        session.commit([[0]])
        at += 1
        due = form.due(at)
        if due > sealed:
            last = [session._engine.kept(0, layer) for layer in range(LAYERS)]
            # Without a residual the newest token of a block is sealed as it is committed.
            known = min(due, at - 1)
            for layer in range(LAYERS):
                raw = [torch.from_numpy(np.array(x[:, sealed:known])) for x in before[layer]]
                if known < due:
                    raw = [torch.cat([x, torch.full((GROUPS, 1, dim), 0.5)], 1) for x in raw]
                    assert form.residual == 0
                tier.seal(0, layer, *raw)
            if form.residual:
                for layer in range(LAYERS):
                    k, v, _ = tier.materialise(layer)
                    np.testing.assert_array_equal(last[layer][0][:, :due], k[0].numpy())
                    np.testing.assert_array_equal(last[layer][1][:, :due], v[0].numpy())
            sealed = due
    assert sealed >= 96


@pytest.mark.parametrize("form", CODED, ids=repr)
@pytest.mark.parametrize(("name", "dim"), [("llama", 8), ("llama-tied-biased", 64), ("qwen3", 128)])
def test_keeps_the_numbers_of_the_hf_tier_in_the_first_layer(folders, form, name, dim):
    """Nothing was read from a cache below the first layer, so a dense session holds the same numbers unrounded."""
    text = ids(150)
    model = load(folders, name)
    dense, kept = model.open(1, 200), model.open(1, 200, form)
    for session in (dense, kept):
        session.prefill([text])
    due = form.due(150)
    tier = tier_of(form, dim, layers=1)
    raw = dense._engine.kept(0, 0)
    tier.seal(0, 0, *(torch.from_numpy(np.array(x[:, :due])) for x in raw))
    want_k, want_v, _ = tier.materialise(0)
    k, v = kept._engine.kept(0, 0)
    np.testing.assert_array_equal(k[:, :due], want_k[0].numpy())
    np.testing.assert_array_equal(v[:, :due], want_v[0].numpy())
    same(k[:, due:], raw[0][:, due:])
    same(v[:, due:], raw[1][:, due:])
    assert not np.array_equal(k[:, :due], raw[0][:, :due])
