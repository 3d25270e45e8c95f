"""Stored rows: they come back bit for bit in every form, and nothing but the right, whole file is taken."""

import hashlib

import keepers
import numpy as np
import pytest
from keepers import chain, opened, same, text

from steno.cache.affine import Affine
from steno.cache.gear import Gear
from steno.cache.h2o import H2O
from steno.cache.half import Half
from steno.cache.minicache import MiniCache
from steno.cache.rotatekv import RotateKV
from steno.cache.window import Window
from steno.core import Stretch
from steno.core.errors import CapsError, DataError, ModelError, PromptError
from steno.models import ModelSpec, load
from steno.reuse import pack, read_row, unpack, write_row

BOTH = [
    None,
    Affine(key_bits=4, value_bits=2, group=8, value_group=8, residual=8, block=8),
    Half(residual=3, block=5),
    Window(sinks=2, window=12, block=4),
]
TENSORS = [
    H2O(heavy=12, residual=8, block=4),
    MiniCache(start=0, residual=8, block=32),
    RotateKV(residual=8, block=32),
    Gear(residual=8, block=32),
]
CASES = [("engine", form) for form in BOTH] + [("pinned", form) for form in (*BOTH, *TENSORS)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("keepers")
    return {"engine": keepers.engine(root / "native"), "pinned": keepers.pinned(root / "hf")}


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    monkeypatch.setenv("STENO_POISON", "1")


@pytest.mark.parametrize(("kind", "form"), CASES, ids=repr)
def test_a_row_comes_back_bit_for_bit(models, kind, form, tmp_path):
    """Into another session, beside another row; and it goes on, through more seal points, as if nothing had been."""
    model, ids = models[kind], text(75)
    first = opened(model, form)
    first.prefill([[], ids])
    write_row(tmp_path / "row", first, 1, ids)
    second = opened(model, form)
    second.prefill([[], text(9, 1)])
    assert read_row(tmp_path / "row", second, 0) == tuple(ids)
    assert second.lengths == (75, 9)
    more = text(60, 2)
    for start in range(0, 60, 3):
        steps = [more[start : start + min(3, first.room()[1])]] * 2
        out = chain(first, [[], steps[0]])[1], chain(second, [steps[0], []])[0]
        same(out[1], out[0])
        first.commit([[], range(len(steps[0]))])
        second.commit([range(len(steps[0])), []])
    assert first.save(1).num_bytes == second.save(0).num_bytes
    for name, array in first.save(1).arrays.items():
        np.testing.assert_array_equal(second.save(0).arrays[name], array)


@pytest.mark.parametrize("kind", ["engine", "pinned"])
def test_parts_make_a_whole(models, kind):
    """Without a form, what is stored in parts is what is stored at once, and what was read may be appended."""
    ids = text(70)
    first, parts, floats = (opened(models[kind]) for _ in range(3))
    first.prefill([ids, []])
    for start, stop in ((0, 64), (64, 65), (65, 70)):
        parts.load(0, first.save(0, start, stop))
    floats.append(0, *first.read(0))
    want = chain(first, [[5], []])[0]
    same(chain(parts, [[5], []])[0], want)
    same(chain(floats, [[5], []])[0], want)
    same(np.stack(first.read(0, 66)), np.stack(first.read(0))[:, :, :, 66:])


@pytest.mark.parametrize("kind", ["engine", "pinned"])
def test_appended_tokens_are_sealed_as_computed_ones_are(models, kind):
    form = BOTH[1]
    dense, sealed = opened(models[kind]), opened(models[kind], form)
    dense.prefill([text(50), []])
    sealed.append(0, *dense.read(0))
    keys, _ = sealed.read(0)
    truth, _ = dense.read(0)
    assert sealed.lengths[0] == 50
    same(keys[:, :, 42:], truth[:, :, 42:])
    assert 0 < np.abs(keys[:, :, :40] - truth[:, :, :40]).max() < 0.2 * np.abs(truth).max()


def test_the_right_file_only(models, tmp_path):
    model, ids = models["engine"], text(40)
    session = opened(model)
    session.prefill([ids, []])
    path = tmp_path / "row"
    write_row(path, session, 0, ids)
    with pytest.raises(ModelError, match=r"row: stored by another model, or in another cache form"):
        read_row(path, opened(model, BOTH[1]), 0)
    with pytest.raises(ModelError, match="another model"):
        read_row(path, opened(models["pinned"]), 0)
    with pytest.raises(DataError, match="do not continue row 0, which holds 40"):
        read_row(path, session, 0)
    with pytest.raises(PromptError, match="would hold 40 tokens, its capacity is 30"):
        read_row(path, opened(model, capacity=30), 1)
    with pytest.raises(DataError, match="cannot be read"):
        read_row(tmp_path / "none", opened(model), 0)
    with pytest.raises(ValueError, match="holds 40 tokens, got 39 ids"):
        write_row(path, session, 0, ids[1:])
    sealed = opened(model, BOTH[1])
    sealed.prefill([ids, []])
    with pytest.raises(ValueError, match="stored as a whole only"):
        sealed.save(0, 8, 16)
    with pytest.raises(CapsError, match="cannot be taken out of its session"):
        write_row(path, load(ModelSpec(source="table:16:0")).open(1, 8), 0, [])


def test_damage_is_seen(models):
    """Every cut, and a changed byte wherever it stands: in the length, the header, the digest, the numbers."""
    session = opened(models["engine"])
    session.prefill([text(3), []])
    data = pack(session.save(0), session.stamp, text(3))
    unpack(data, session.stamp)
    rng = np.random.default_rng(0)
    places = [*range(0, 60), *rng.integers(60, len(data), 150).tolist()]
    for place in places:
        broken = bytearray(data)
        broken[place] ^= 1 << int(rng.integers(8))
        with pytest.raises((DataError, ModelError)):
            unpack(bytes(broken), session.stamp)
    for size in (0, 7, 8, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(DataError, match="no whole file of stored KV"):
            unpack(data[:size], session.stamp)


def test_what_does_not_fit_is_refused(models):
    for kind in ("engine", "pinned"):
        session = opened(models[kind])
        session.prefill([text(20), []])
        whole = session.save(0)
        for wrong in (
            Stretch(start=0, stop=20, arrays={}, meta=whole.meta),
            Stretch(start=0, stop=21, arrays=whole.arrays, meta=whole.meta),
            Stretch(start=0, stop=20, arrays={n: a[..., :-1] for n, a in whole.arrays.items()}, meta=whole.meta),
            Stretch(start=0, stop=20, arrays=whole.arrays, meta={}),
        ):
            with pytest.raises(DataError):
                session.load(1, wrong)
            assert session.lengths == (20, 0)


def test_the_format_is_what_it_was():
    numbers = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    data = pack(Stretch(start=0, stop=2, arrays={"keys": numbers}, meta={"sealed": 0}), "stamp", [7, 8])
    assert hashlib.sha256(data).hexdigest() == "6983d7f4137175263554d395180388f8cd2b56f057cc5c4adadcd38a12af6e03"
