"""Packed weights: a second start maps what the first one made, and nothing but that."""

import os

import native_tiny
import numpy as np
import pytest
from native_tiny import chain, forest, ids

from steno.models import _packed, native

pytest.importorskip("torch")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model worth keeping, and a cache of its own."""
    monkeypatch.setenv("STENO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_packed, "SMALL_BYTES", 0)
    native_tiny.make("llama-tied-biased", tmp_path / "model")
    return tmp_path / "model"


def kept(folder):
    return sorted((folder.parent / "cache" / "packed").glob("*"))


def logits(model):
    return np.array(model.open(1, 64).forward(forest([chain(ids(40))])).logits[0])


@pytest.mark.parametrize("form", ["fp32", "bf16", "int8", "int4", "int4-128"])
def test_a_second_start_maps_the_same_bits(folder, form):
    first, second = native.load(folder, weights=form), native.load(folder, weights=form)
    assert (first.engine.mapped, second.engine.mapped) == (False, True)
    assert first.fingerprint == second.fingerprint
    np.testing.assert_array_equal(logits(first), logits(second))
    with pytest.raises(ValueError, match="mapped"):
        second.engine.put_norm(native_norm(), 0, np.ones(42, np.float32))


def native_norm():
    from steno.models._engine import Norm

    return Norm.OUT


def test_each_form_and_each_state_of_the_files_has_its_own(folder):
    native.load(folder, weights="int8")
    native.load(folder, weights="int4")
    assert len(kept(folder)) == 2
    weights = folder / "model.safetensors"
    os.utime(weights, ns=(1, 1))
    assert not native.load(folder, weights="int8").engine.mapped
    assert len(kept(folder)) == 3


@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "empty", "header"])
def test_a_damaged_file_is_made_again(folder, damage):
    want = native.load(folder)
    (file,) = kept(folder)
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    elif damage == "header":
        data[20] ^= 1
    else:
        data = {"cut": data[:-1], "grow": data + b"x", "empty": b""}[damage]
    file.write_bytes(data)
    again = native.load(folder)
    assert not again.engine.mapped
    assert again.fingerprint == want.fingerprint
    assert native.load(folder).engine.mapped


def test_off_keeps_nothing(folder, monkeypatch):
    monkeypatch.setenv("STENO_CACHE", "off")
    native.load(folder)
    assert not kept(folder)


def test_an_unwritable_cache_is_said_and_harmless(folder, monkeypatch, capsys):
    (folder.parent / "file").write_text("")
    monkeypatch.setenv("STENO_CACHE", str(folder.parent / "file"))
    assert not native.load(folder).engine.mapped
    assert "were not kept for the next start" in capsys.readouterr().err


def test_a_full_cache_drops_what_was_used_longest_ago(folder, monkeypatch):
    native.load(folder, weights="fp32")
    (old,) = kept(folder)
    os.utime(old, ns=(1, 1))
    monkeypatch.setattr(_packed, "MOST_BYTES", old.stat().st_size + 10)
    native.load(folder, weights="int8")
    (new,) = kept(folder)
    assert new != old
