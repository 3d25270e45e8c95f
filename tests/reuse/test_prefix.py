"""The prefix cache: keys name all that comes before, budgets hold, and a hit gives the bits of a miss."""

import hashlib

import keepers
import numpy as np
import pytest
from keepers import opened, same, text

from steno.cache.affine import Affine
from steno.cache.h2o import H2O
from steno.core import Plan, Stretch
from steno.decode import CostTable, Request, generate
from steno.models import ModelSpec, load
from steno.reuse import PrefixCache, Remembering

FORM = Affine(key_bits=4, value_bits=2, group=8, value_group=8, residual=8, block=8)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("keepers")
    return {"engine": keepers.engine(root / "native"), "pinned": keepers.pinned(root / "hf")}


def stretch(size: int = 100) -> Stretch:
    return Stretch(start=0, stop=1, arrays={"keys": np.zeros(size, np.uint8)}, meta={})


def test_keys_by_hand():
    cache = PrefixCache(1 << 20, block=2)
    root = hashlib.sha256(b"steno prefix 1 2 stamp").digest()
    one = hashlib.sha256(root + bytes([5, 0, 0, 0, 6, 0, 0, 0])).digest()
    two = hashlib.sha256(one + bytes([7, 0, 0, 0, 0, 1, 0, 0])).hexdigest()
    assert cache.keys("stamp", [5, 6, 7, 256, 9], 2) == [one.hex(), two]


def test_a_key_names_all_that_comes_before():
    cache = PrefixCache(1 << 20, block=4)
    ids = text(16)
    keys = cache.keys("m", ids, 4)
    other = cache.keys("m", [ids[0] + 1, *ids[1:]], 4)
    assert not set(keys) & set(other)
    assert cache.keys("m", ids[:11], 4) == keys[:2]
    assert not set(keys) & set(cache.keys("n", ids, 4))


def test_least_recently_used_goes_first():
    cache = PrefixCache(350)
    for name in "abc":
        cache.put(name, stretch(), "m", [1])
    cache.touch(["a", "b"])
    cache.put("d", stretch(), "m", [1])
    # b was touched before a: blocks at the end of a text go before those they lean on.
    assert [key in cache for key in "abcd"] == [True, True, False, True]
    cache.put("e", stretch(), "m", [1])
    assert [key in cache for key in "abcde"] == [True, False, False, True, True]
    assert cache.held_bytes == {"memory": 300, "disk": 0}
    assert cache.stats.dropped == 2


def test_too_large_for_memory_is_not_held():
    cache = PrefixCache(50)
    cache.put("a", stretch(), "m", [1])
    assert "a" not in cache
    assert cache.held_bytes["memory"] == 0


def test_disk_takes_what_memory_lets_go_of(tmp_path):
    cache = PrefixCache(150, folder=tmp_path, disk_bytes=2000)
    for name in "abc":
        cache.put(name, stretch(), "m", [ord(name)])
    assert cache.stats.spilled == 2
    assert all(key in cache for key in "abc")
    got = cache.get("a", "m")
    assert got is not None
    assert not got.arrays["keys"].any()
    cache.close()
    again = PrefixCache(150, folder=tmp_path, disk_bytes=2000)
    assert all(key in again for key in "abc")
    # Of another model it is no use, and cut short neither.
    assert again.get("b", "other") is None
    (tmp_path / "c.safetensors").write_bytes((tmp_path / "c.safetensors").read_bytes()[:-1])
    assert again.get("c", "m") is None
    assert again.stats.damaged == 2
    assert not list(tmp_path.glob("[bc].*"))
    small = PrefixCache(0, folder=tmp_path, disk_bytes=10)
    assert "a" not in small
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["engine", "pinned"])
@pytest.mark.parametrize("form", [None, FORM, pytest.param(H2O(heavy=12, residual=8, block=4))], ids=repr)
def test_a_hit_gives_the_bits_of_a_miss(models, kind, form):
    if kind == "engine" and isinstance(form, H2O):
        pytest.skip("only its tier knows what it does")
    model = models[kind]
    cache = PrefixCache(1 << 24, block=16, whole_tokens=32)
    remembering = Remembering(model, cache)
    shared = text(70)
    prompts = [[*shared, *text(9, 1)], [*shared[:50], *text(30, 2)]]
    want = model.open(2, 160, form).prefill(prompts, last=True)
    # Rows of one call find each other where they are stored as they come. The last token of the second prompt runs,
    # since its logits are asked for: 4 of its 5 blocks of 16 are found.
    for found in (0 if form is None else 32, 64 + 64):
        session = remembering.open(2, 160, form)
        before = cache.stats.found
        same(session.prefill(prompts, last=True), want)
        assert session.lengths == (79, 80)
        assert cache.stats.found - before == found
    alone = opened(model, form, batch=2)
    alone.prefill([prompts[0], []])
    pending = remembering.open(2, 160, form)
    pending.prefill([prompts[0], []])
    same(keepers.chain(pending, [[3], []])[0], keepers.chain(alone, [[3], []])[0])


def test_blocks_are_shared_between_texts(models):
    cache = PrefixCache(1 << 24, block=16)
    remembering = Remembering(models["engine"], cache)
    shared = text(40)
    remembering.open(1, 160).prefill([[*shared, *text(20, 1)]])
    held = cache.held_bytes["memory"]
    remembering.open(1, 160).prefill([[*shared, *text(20, 2)]])
    assert cache.stats.found == 32
    # Three blocks, then one: the first two are known.
    assert cache.held_bytes["memory"] == held // 3 * 4


def test_the_loop_takes_it_for_a_model(models):
    cache = PrefixCache(1 << 24, block=16)
    model = models["engine"]
    shared = tuple(text(50))
    asked = [Request(number=i, prompt=(*shared, *text(5 + i, i)), max_tokens=12, ignore_eos=True) for i in range(5)]
    free = CostTable({1: 1.0})
    want = [done.tokens for done in generate(model, asked, Plan(), batch=2, costs=free)]
    got = [done.tokens for done in generate(Remembering(model, cache), asked, Plan(), batch=2, costs=free)]
    assert got == want
    assert cache.stats.found == 48 * 3


def test_models_without_kv_pass_through():
    model = load(ModelSpec(source="table:16:0"))
    session = Remembering(model, PrefixCache(1 << 20)).open(1, 8)
    session.prefill([[1, 2, 3]])
    assert session.lengths == (3,)


def test_sizes_are_checked():
    with pytest.raises(ValueError, match=r"whole_tokens \(100\) must be a multiple of block \(64\)"):
        PrefixCache(1, whole_tokens=100)
