"""Drafters with trained parts: every one against its network in torch, the adapter file, and token equality."""

import json
import struct

import numpy as np
import pytest
import torch
from rig import FREE, run
from trained_rig import LAYERS, TRAINED, VOCAB, WIDTH, Bench, save_llama, train

from steno.core import Plan, index, make_knob
from steno.core.errors import CapsError, DataError, KnobError, ModelError, OutputError, PlanError
from steno.decode import Request, generate
from steno.decode.adapter import Adapter, AdapterCard, load
from steno.decode.draft._trained import best, grid, grow
from steno.models import ModelSpec
from steno.models import load as load_model
from steno.models.table import TableModel

INDEX = index.scan()
TREES = [name for name in TRAINED if {"fan", "beam"} <= set(INDEX[name]["fields"])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def adapters(folder, tmp_path_factory):
    """Every method trained for a moment: (path, scores before, scores after)."""
    out = tmp_path_factory.mktemp("adapters")
    return {name: train(name, folder, out) for name in TRAINED}


@pytest.fixture(scope="module")
def native(folder):
    return load_model(ModelSpec(source=str(folder), backend="native", weights="fp32", threads=1))


@pytest.fixture(scope="module")
def pinned(folder):
    return load_model(ModelSpec(source=str(folder), backend="hf", pinned=True, width=8, weights="fp32", threads=1))


def knob(name, adapters):
    return make_knob(name, {"adapter": str(adapters[name][0])})


def asking(count, most):
    prompts = [tuple((n * 31 + i * i) % VOCAB for i in range(1 + 9 * n % 25)) for n in range(count)]
    return [Request(number=n, prompt=p, max_tokens=most - n, ignore_eos=True) for n, p in enumerate(prompts)]


# What every one promises


def test_every_method_with_an_adapter_has_a_network_and_a_recipe():
    from steno.train.heads import recipe

    assert [name for name in INDEX if "adapter" in INDEX[name]["fields"]] == TRAINED
    for name in TRAINED:
        path = recipe.find(name.rpartition(".")[2])
        assert path is not None and recipe.load(path).method == name


@pytest.mark.parametrize("name", TRAINED)
def test_training_makes_it_better(name, adapters):
    _, before, after = adapters[name]
    assert after["right tokens"] > before["right tokens"] + 0.05


@pytest.mark.parametrize("name", TRAINED)
def test_it_changes_no_token(name, adapters, native, pinned):
    """Greedy and sampled, alone and in a ragged batch that refills, on both backends."""
    warm = make_knob("decode.shape.temperature", {"temperature": 0.3})
    for model, batch, shapers in ((native, 1, ()), (native, 3, (warm,)), (pinned, 3, ())):
        if model.backend not in knob(name, adapters).card.backends:
            continue
        asked = asking(5, 24)
        plain = run(model, asked, *shapers, batch=batch)
        done = run(model, asked, *shapers, knob(name, adapters), batch=batch)
        assert [(c.tokens, c.finish) for c in done] == [(c.tokens, c.finish) for c in plain]
        assert sum(c.stats.accepted for c in done) > 0, (model.backend, batch)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_the_conformance_kit_agrees(name, adapters, native):
    from steno.measure.conform import verify

    found = verify(native, Plan((knob(name, adapters),)), prompts=[r.prompt for r in asking(3, 16)], tokens=16)
    assert found.passed, found.failed


@pytest.mark.parametrize("name", TRAINED)
def test_the_best_path_is_what_the_network_says(name, tmp_path):
    """numpy against torch: by its likeliest path, the drafter says what the network says of the same text."""
    bench = Bench(name, tmp_path)
    drafter = bench.drafter(row=1)
    draft = drafter.propose(1, bench.ids, 50)
    path, node = [], -1
    while (node := next((i for i, p in enumerate(draft.parents) if p == node), -2)) >= 0:
        path.append(node)
    assert len(path) == 3
    laws = bench.naive([draft.tokens[i] for i in path])
    assert [draft.tokens[i] for i in path] == laws.argmax(1).tolist()
    if draft.scores:
        assert np.allclose([draft.scores[i] for i in path], laws.max(1).cumprod(), rtol=1e-3)
    again = drafter.propose(1, bench.ids, 50)
    assert again == draft, "proposing leaves no trace"


@pytest.mark.parametrize("name", TRAINED)
def test_supposed_tokens_come_first(name, tmp_path):
    """What is drafted behind tokens that are supposed to come is what the network says behind them."""
    bench = Bench(name, tmp_path)
    drafter = bench.drafter()
    before = drafter.propose(0, bench.ids, 50)
    draft = drafter.propose(0, bench.ids, 50, [7])
    assert draft.tokens[0] == bench.naive([7])[1].argmax()
    assert drafter.propose(0, bench.ids, 50) == before
    assert len(drafter.propose(0, bench.ids, 2).tokens) <= 2


@pytest.mark.parametrize("name", TRAINED)
def test_rows_do_not_mix_and_a_request_starts_anew(name, tmp_path):
    bench = Bench(name, tmp_path)
    drafter = bench.drafter(row=0)
    alone = drafter.propose(0, bench.ids, 20)
    drafter.start(1, Request(number=1, prompt=(1, 2)))
    if drafter.prompts:
        drafter.read(1, [1], {k: h[:1] for k, h in bench.hidden.items()})
    else:
        assert not drafter.propose(1, [1, 2], 20).tokens, "there is no state before the first step"
    drafter.observe(1, bench.seen(2, [2]))
    drafter.propose(1, [1, 2, 3], 20)
    assert drafter.propose(0, bench.ids, 20) == alone
    drafter.finish(0, bench.ids)
    drafter.start(0, Request(number=2, prompt=(5,)))
    assert not drafter.propose(0, [5], 20).tokens


def test_it_drafts_inside_combinations(adapters, native):
    """A combination hands the session and the states on to its parts."""
    asked = asking(3, 24)
    plain = run(native, asked)
    for name in TRAINED:
        inner = {"name": name, "adapter": str(adapters[name][0])}
        for outer in ({"first": {"name": "decode.draft.lookup"}, "second": inner}, {"first": inner}):
            done = run(native, asked, make_knob("decode.draft.graft", outer), batch=2)
            assert [c.tokens for c in done] == [c.tokens for c in plain]
            assert sum(c.stats.accepted for c in done) > 0


def test_a_prompt_that_is_read_in_forwards_leaves_the_cache_of_a_prefill(adapters, native):
    """Also where a cache seals blocks: a forward never crosses a seal point."""
    cache = make_knob("cache.affine", {"residual": 32, "block": 32, "key_bits": 8, "value_bits": 8})
    prompt = tuple(i * 13 % VOCAB for i in range(150))
    asked = [Request(number=0, prompt=prompt, max_tokens=12, ignore_eos=True)]
    assert generate(native, asked, Plan((cache, knob("decode.draft.eagle", adapters))))[0].tokens == (
        generate(native, asked, Plan((cache,)))[0].tokens
    )


# The adapter file


def card(**more):
    told = {"method": "decode.draft.medusa", "model": "m", "base": "b", "layers": (2,), "recipe": "", "scores": {}}
    return AdapterCard(**{**told, **more})


def test_an_adapter_comes_back_as_it_was_written(tmp_path):
    tensors = {"one": np.arange(6, dtype=np.float32).reshape(2, 3), "two": np.float32([[0.5]])}
    path = tmp_path / "a.safetensors"
    Adapter(card=card(scores={"depth 1": 0.5}), tensors=tensors).write(path)
    found = load(path, "decode.draft.medusa")
    assert found.card == card(scores={"depth 1": 0.5})
    assert all((found.tensors[k] == v).all() and found.tensors[k].dtype == np.float32 for k, v in tensors.items())
    with pytest.raises(ValueError, match="read-only"):
        found.tensors["one"][0] = 1
    with pytest.raises(OutputError, match="--force"):
        Adapter(card=card(), tensors=tensors).write(path)
    with pytest.raises(OutputError, match=r"ends in \.safetensors"):
        Adapter(card=card(), tensors=tensors).write(tmp_path / "a.bin")
    with pytest.raises(DataError, match="one does not fit float16"):
        Adapter(card=card(), tensors={"one": np.float32([1e6])}).write(tmp_path / "b.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors"]


def test_damage_is_told(tmp_path):
    path = tmp_path / "a.safetensors"
    Adapter(card=card(), tensors={"one": np.ones((4, 4), np.float32)}).write(path)
    whole = path.read_bytes()
    header = struct.unpack("<Q", whole[:8])[0]
    for damaged in (b"", whole[:7], whole[: 8 + header], whole[:-1], whole + b"x"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="cut or damaged"):
            load(path, "decode.draft.medusa")
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match="its checksum does not match"):
        load(path, "decode.draft.medusa")
    told = json.loads(whole[8 : 8 + header])
    told["__metadata__"]["steno_adapter"] = told["__metadata__"]["steno_adapter"].replace('"card"', '"cart"')
    text = json.dumps(told).encode().ljust(header)
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + header :])
    with pytest.raises(DataError, match="its card cannot be read"):
        load(path, "decode.draft.medusa")
    from safetensors.numpy import save_file

    save_file({"one": np.ones(2, np.float32)}, path)
    with pytest.raises(DataError, match="no steno adapter"):
        load(path, "decode.draft.medusa")


def test_another_method_s_or_model_s_adapter_is_refused(adapters, native, folder, tmp_path):
    path = str(adapters["decode.draft.medusa"][0])
    with pytest.raises(ModelError, match=r"is an adapter of decode\.draft\.medusa"):
        generate(native, asking(1, 4), Plan((make_knob("decode.draft.hydra", {"adapter": path}),)))
    other = load_model(ModelSpec(source=str(save_llama(tmp_path / "other", seed=1)), backend="native", weights="fp32"))
    assert other.origin != native.origin
    # Also inside a combination, and before anything runs.
    nested = make_knob("decode.draft.first", {"second": {"name": "decode.draft.medusa", "adapter": path}})
    for used in (make_knob("decode.draft.medusa", {"adapter": path}), nested):
        with pytest.raises(ModelError, match=r"was trained on .* is another model\. Train one on it"):
            generate(other, asking(1, 4), Plan((used,)))
    with pytest.raises(ModelError, match=r"there is no adapter .*steno train medusa --out DIR"):
        generate(native, asking(1, 4), Plan((make_knob("decode.draft.medusa", {"adapter": "none.safetensors"}),)))
    with pytest.raises(KnobError, match=r"adapter must be the path .* got ''"):
        generate(native, asking(1, 4), Plan((make_knob("decode.draft.medusa", {}),)))
    assert not make_knob("decode.draft.medusa", {}).complete and knob("decode.draft.medusa", adapters).complete
    with pytest.raises(PlanError, match="table"):
        generate(TableModel(), asking(1, 4), Plan((make_knob("decode.draft.medusa", {"adapter": path}),)))


def test_an_origin_is_the_files_on_every_backend(native, pinned, folder):
    assert native.origin == pinned.origin == load_model(ModelSpec(source=str(folder), weights="int8")).origin
    assert native.fingerprint != pinned.fingerprint


def test_a_session_without_hidden_states_is_refused(adapters, native, monkeypatch):
    from dataclasses import replace

    from steno.decode import _reading

    session = native.open(1, 8)

    class Blind:
        caps = replace(session.caps, hidden=False)

    with pytest.raises(CapsError, match="no hidden states to draft from"):
        _reading.attach(knob("decode.draft.medusa", adapters).open(1, VOCAB), Blind(), native)


# Shared parts


def test_the_best_are_the_best():
    logits = np.random.default_rng(0).standard_normal((5, 30)).astype(np.float32)
    logits[2] = 0
    ids, probs = best(logits, 4)
    law = torch.from_numpy(logits).softmax(-1).numpy()
    assert (ids == np.argsort(-logits, axis=1, kind="stable")[:, :4]).all()
    assert np.allclose(probs, np.take_along_axis(law, ids, 1), rtol=1e-5)
    assert best(logits, 99)[0].shape == (5, 30)


def test_a_grid_by_hand_and_against_all_products():
    """Two guesses a head: 0.6 and 0.3, then 0.5 and 0.4. The likeliest four of six nodes, parents first."""
    ids, probs = np.array([[7, 8], [5, 6]], np.int32), np.float32([[0.6, 0.3], [0.5, 0.4]])
    draft = grid(ids, probs, 4, "x")
    assert (draft.tokens, draft.parents) == ((7, 8, 5, 6), (-1, -1, 0, 0))
    assert np.allclose(draft.scores, [0.6, 0.3, 0.3, 0.24])
    rng = np.random.default_rng(0)
    probs = -np.sort(-rng.random((3, 3)).astype(np.float32), axis=1)
    draft = grid(np.arange(9, dtype=np.int32).reshape(3, 3), probs, 20, "x")
    products = [probs[0], np.outer(probs[0], probs[1]).ravel(), np.einsum("i,j,k", *probs).ravel()]
    assert np.allclose(sorted(draft.scores)[::-1], np.sort(np.concatenate(products))[::-1][:20], rtol=1e-5)


def test_levels_grow_by_hand():
    """A first-order law: after a come b and c. The beam keeps the two likeliest of each level's children."""
    law = {0: [0, 0.6, 0.4, 0], 1: [0.1, 0, 0.2, 0.7], 2: [0.9, 0.05, 0.05, 0], 3: [1, 0, 0, 0]}
    calls = []

    def step(parents, tokens):
        calls.append((parents.tolist(), tokens.tolist()))
        with np.errstate(divide="ignore"):
            return np.log(np.float32([law[t] for t in tokens.tolist()]))

    draft = grow(step, [3, 0], depth=2, fan=2, beam=2, most=9, source="x")
    assert (draft.tokens, draft.parents) == ((1, 2, 3, 0), (-1, -1, 0, 1))
    assert np.allclose(draft.scores, [0.6, 0.4, 0.42, 0.36])
    assert calls == [([0], [3]), ([0], [0]), ([0, 0], [1, 2])]
    assert grow(step, [0], depth=5, fan=1, beam=1, most=3, source="x").tokens == (1, 3, 0)


# Each one's own


def test_medusa_drafts_a_grid(tmp_path):
    """Every node of a depth has the same children, whatever its own token."""
    draft = Bench("decode.draft.medusa", tmp_path).drafter(fan=2, num_tokens=50).propose(0, [1], 50)
    assert len(draft.tokens) == 2 + 4 + 8
    below = {}
    for token, parent in zip(draft.tokens, draft.parents, strict=True):
        below.setdefault(parent, set()).add(token)
    one, two = (i for i, parent in enumerate(draft.parents) if parent == -1)
    assert below[one] == below[two] != below[-1]


@pytest.mark.parametrize("name", TREES)
def test_children_depend_on_their_parents(name, tmp_path):
    """The sequential dependence that Medusa's grid lacks: another token at depth 1, other laws at depth 2."""
    bench = Bench(name, tmp_path)
    assert not np.allclose(bench.naive([3])[1], bench.naive([4])[1], rtol=1e-3)
    drafter = bench.drafter(fan=3, beam=9)
    draft = drafter.propose(0, bench.ids, 50)
    for child in range(3):
        law = bench.naive([draft.tokens[child]])[1]
        mine = [(t, s) for t, p, s in zip(draft.tokens, draft.parents, draft.scores, strict=True) if p == child]
        assert [t for t, _ in mine] == np.argsort(-law, kind="stable")[: len(mine)].tolist()
        assert np.allclose([s / draft.scores[child] for _, s in mine], np.sort(law)[::-1][: len(mine)], rtol=1e-3)


def test_blockwise_needs_as_few_steps_as_its_heads_allow(tmp_path):
    """At least one step per block of k + 1 tokens, and a draft is one path as long as there are heads."""
    bench = Bench("decode.draft.blockwise", tmp_path)
    draft = bench.drafter().propose(0, bench.ids, 50)
    assert draft.parents == (-1, 0, 1) and not draft.branches


def test_an_untrained_medusa_says_what_the_model_says(folder):
    from steno.train.heads import run as runs
    from steno.train.heads.recipe import Shape

    frozen = runs.freeze(str(folder))
    part = runs.build("medusa", frozen, Shape(depth=2))
    hidden = torch.randn(1, 6, WIDTH)
    states = part.states({LAYERS: hidden}, torch.zeros(1, 6, dtype=torch.long))
    assert torch.allclose(frozen.head(states)[0, :, 1], frozen.head(hidden)[0, :3], atol=1e-3)


__all__ = ["FREE"]
