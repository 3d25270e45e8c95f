"""The hf backend over tiny random models of every family: the contract, transformers as the oracle, pinned mode."""

import numpy as np
import pytest
import tiny
import torch
import transformers
from contract import CHECKS, Subject, c7_exactness_of_chains, chains
from tiny import FAMILIES, RECURRENT, VOCAB

from steno.core import PAD, ROOT, Keeps, Nodes, Want
from steno.core.errors import CapsError
from steno.measure._lab import chain, forest

ATTENTION = [family for family in FAMILIES if family not in RECURRENT]
CAPACITY = 64


def some(*fast):
    """Every family with attention; all but `fast` are slow."""
    return [f if f in fast else pytest.param(f, marks=pytest.mark.slow) for f in ATTENTION]


def full(model, ids):
    """Logits [T, V] of transformers' own forward over the whole text, attention as transformers chooses it."""
    model.net.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            return model.net(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()
    finally:
        if model._registered:
            model.net.set_attn_implementation("steno")


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("family", FAMILIES)
def test_contract(loaded, family, check):
    check(Subject(model=loaded(family)))


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("family", some("llama", "mistral", "gemma2", "mixtral", "gpt2"))
def test_contract_pinned(loaded, family, check):
    model = loaded(family, 8)
    assert model.open(1, 8).caps.chain_exact is Keeps.BITS
    check(Subject(model=model))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_full_forward(loaded, family):
    """Longer than any window: prefill, a chain of drafts, and the hidden states on the way."""
    model = loaded(family)
    subject = Subject(model=model)
    texts = [subject.ids(40, 1), subject.ids(17, 2), subject.ids(29, 3)]
    session = model.open(3, CAPACITY)
    last = session.prefill([t[:-4] for t in texts], last=True)
    logits = session.forward(chains(*(t[-4:] for t in texts))).logits
    for b, text in enumerate(texts):
        want = full(model, text)
        np.testing.assert_allclose(last[b], want[-5], atol=1e-4, rtol=0)
        np.testing.assert_allclose(logits[b], want[-4:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_that_of_generate(loaded, family):
    model = loaded(family)
    prompt = Subject(model=model).ids(11, 4)
    how = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    want = model.net.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, 11, dtype=torch.long), **how)
    session = model.open(1, CAPACITY)
    session.prefill([prompt[:-1]])
    text = list(prompt)
    while len(text) < len(prompt) + 24:
        row = session.forward(chains(text[-1:])).logits[0, 0].copy()
        # min_new_tokens forbids the end token.
        row[list(model.eos)] = -np.inf
        session.commit([[0]])
        text.append(int(row.argmax()))
    assert text == want[0].tolist()


@pytest.mark.parametrize("family", ATTENTION)
def test_hidden_states_are_those_of_transformers(loaded, family):
    model = loaded(family)
    ids = Subject(model=model).ids(12, 5)
    with torch.inference_mode():
        want = model.net(torch.tensor([ids]), use_cache=False, output_hidden_states=True).hidden_states
    session = model.open(1, CAPACITY)
    session.prefill([ids[:-3]])
    step = session.forward(chains(ids[-3:]), Want(logits=False, hidden=tuple(range(model.depth))))
    assert model.depth == model.config.num_hidden_layers
    # transformers hands out its last hidden state after the norm; the contract checks ours through `head`.
    for layer in range(model.depth):
        np.testing.assert_allclose(step.hidden(layer)[0], want[layer][0, -3:].numpy(), atol=1e-4)
    with pytest.raises(CapsError, match=r"not asked for"):
        _ = step.logits
    with pytest.raises(ValueError, match=r"Want.hidden"):
        step.hidden(model.depth)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_finds_its_head(loaded, family):
    assert loaded(family)._tail


def test_windows_are_by_position(loaded):
    """A sibling takes a slot, never a place in the window: a comb of siblings deeper than Mistral's window of 6."""
    model = loaded("mistral")
    text, strangers = Subject(model=model).ids(30, 6), Subject(model=model).ids(10, 7)
    session = model.open(1, CAPACITY)
    session.prefill([text[:20]])
    tokens, parents, path, up = [], [], [], ROOT
    for token, stranger in zip(text[20:], strangers, strict=True):
        tokens += [stranger, token]
        parents += [up, up]
        up = len(tokens) - 1
        path.append(up)
    logits = session.forward(forest([(tokens, parents)])).logits[0]
    np.testing.assert_allclose(logits[path], full(model, text)[20:], atol=1e-4, rtol=0)
    session.commit([path])
    again = session.forward(chains([5])).logits[0, 0]
    np.testing.assert_allclose(again, full(model, [*text, 5])[-1], atol=1e-4, rtol=0)


@torch.inference_mode()
def spoil(session):
    """Make every slot NaN that was ever written and is not committed; what was never written has to be zero."""
    for layer in session._cache.live():
        for held in layer.pair():
            for b, (low, high) in enumerate(zip(session.lengths, session._cache.high, strict=True)):
                held[b, :, low:high] = torch.nan
                assert not held[b, :, high:].any(), "a slot beyond `high` was written"


@pytest.mark.parametrize("width", [0, 8], ids=["free", "pinned"])
def test_what_stands_outside_the_lengths_is_never_read(loaded, width):
    model = loaded("llama", width)
    subject = Subject(model=model)
    rng = np.random.default_rng(0)
    clean, dirty = subject.ragged(), subject.ragged()
    for step in range(8):
        rows = [chain(subject.ids(int(rng.integers(1, 9)), 10 * step + b)) for b in range(3)]
        take = [list(range(int(rng.integers(0, len(tokens) + 1)))) for tokens, _ in rows]
        if step == 5:
            for session in (clean, dirty):
                session.crop([n - 3 if n > 3 else n for n in session.lengths])
        spoil(dirty)
        want = np.array(clean.forward(forest(rows)).logits)
        got = np.array(dirty.forward(forest(rows)).logits)
        for b, (tokens, _) in enumerate(rows):
            np.testing.assert_array_equal(got[b, : len(tokens)], want[b, : len(tokens)])
        clean.commit(take)
        dirty.commit(take)
        assert clean.lengths == dirty.lengths


@pytest.mark.parametrize("family", ["llama", "mistral", "mixtral", "gpt2"])
@pytest.mark.parametrize("form", ["fp32", "bf16"])
def test_pinned_rows_are_bit_equal_beside_any_others(folder, family, form):
    """A row alone in a session of three, beside two others, and in another place of the batch: the same bits."""
    from steno.models import ModelSpec, hf

    spec = ModelSpec(source=family, device="cpu", pinned=True, width=8, weights=form)
    model = hf.load(folder(family), spec)
    subject = Subject(model=model)
    texts = [subject.ids(30, b) for b in range(3)]

    def decode(order, chunks):
        session = model.open(3, CAPACITY)
        session.prefill([texts[t][: 5 + 2 * t] if t is not None else [] for t in order])
        rows = {t: [] for t in order if t is not None}
        rng = np.random.default_rng(chunks)
        while any(len(r) < 12 for r in rows.values()):
            drafts = []
            for b, t in enumerate(order):
                most = 0 if t is None else min(int(rng.integers(1, 9)) if chunks else 1, 12 - len(rows[t]))
                at = session.lengths[b]
                drafts.append(texts[t][at : at + most] if t is not None else [])
            logits = np.array(session.forward(chains(*drafts)).logits)
            for b, t in enumerate(order):
                if t is not None:
                    rows[t] += list(logits[b, : len(drafts[b])])
            session.commit([list(range(len(d))) for d in drafts])
        return rows

    want = decode((0, 1, 2), 0)
    for order in ((0, 1, 2), (2, 0, 1), (0, None, None), (None, None, 1), (None, 2, None)):
        for chunks in (0, 1, 2):
            for t, logits in decode(order, chunks).items():
                np.testing.assert_array_equal(logits, want[t])


def test_pinned_width_bounds_the_forest(loaded):
    session = loaded("llama", 8).open(1, CAPACITY)
    assert session.caps.max_width == 8
    assert session.caps.tree_exact is Keeps.NEAR
    with pytest.raises(CapsError, match=r"9 nodes per row is wider than this session's 8"):
        session.forward(chains(range(9)))


def test_a_width_that_ends_in_broken_vectors_is_raised(tmp_path):
    """5 rows of 33 numbers end in scalar code on a CPU: the session takes more columns and keeps its promise."""
    from steno.models import ModelSpec, hf

    odd = tiny.sizes(hidden_size=40, intermediate_size=33, num_attention_heads=5, num_key_value_heads=5, vocab_size=97)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(transformers.LlamaConfig(**odd)).save_pretrained(tmp_path)
    model = hf.load(tmp_path, ModelSpec(source="odd", device="cpu", pinned=True, width=5))
    caps = model.open(1, CAPACITY).caps
    assert caps.max_width == 64
    assert caps.chain_exact is Keeps.BITS
    c7_exactness_of_chains(Subject(model=model))


@pytest.mark.parametrize("place", ["column", "row"])
def test_kernels_that_differ_by_place_lose_the_promise(folder, monkeypatch, place):
    """One unit in the last place, in the last column or the last row of the batch."""
    from steno.models import ModelSpec, hf

    model = hf.load(folder("llama"), ModelSpec(source="llama", device="cpu", pinned=True, width=8))
    layer = model.net.model.layers[1].mlp
    forward = layer.forward

    def nudged(x):
        out = forward(x).clone()
        last = out[:, -1] if place == "column" else out[-1]
        last.copy_(torch.nextafter(last, last + 1))
        return out

    monkeypatch.setattr(layer, "forward", nudged)
    caps = model.open(3, 256).caps
    assert caps.chain_exact is Keeps.NEAR
    assert caps.max_width == 8


def test_measuring_leaves_an_empty_session(loaded):
    session = loaded("llama", 8).open(3, 48)
    assert session.lanes_agree()
    assert session.lengths == (0, 0, 0)
    assert not any(held.any() for layer in session._cache.live() for held in layer.pair())


def test_free_shapes_promise_nothing(loaded):
    caps = loaded("llama").open(1, CAPACITY).caps
    assert caps.chain_exact is caps.tree_exact is Keeps.NEAR
    assert caps.tree
    assert caps.crop


@pytest.mark.parametrize("family", RECURRENT)
def test_recurrent_models_refuse_trees_and_crops_with_the_reason(loaded, family):
    model = loaded(family)
    session = model.open(1, CAPACITY)
    assert not session.caps.tree
    assert not session.caps.crop
    assert session.caps.recurrent
    assert session.caps.chain_exact is Keeps.BITS
    session.prefill([[1, 2, 3]])
    with pytest.raises(CapsError, match=r"recurrent.*branches"):
        session.forward(forest([([4, 5], [ROOT, ROOT])]))
    with pytest.raises(CapsError, match=r"recurrent.*give tokens back"):
        session.crop([1])
    with pytest.raises(CapsError, match=r"no KV"):
        model.open(1, CAPACITY, object())


def test_a_forest_deeper_than_the_room_is_refused(loaded):
    for family in ("llama", "mamba"):
        session = loaded(family).open(1, 8)
        session.prefill([[1, 2, 3, 4, 5]])
        assert session.room() == (3,)
        with pytest.raises(ValueError, match=r"room for 3 tokens"):
            session.forward(chains([1, 2, 3, 4]))
        # Wide is not deep: siblings share a position.
        if session.caps.tree:
            session.forward(forest([([1, 2, 3, 4, 5], [ROOT, ROOT, 0, 0, 1])]))


@pytest.mark.parametrize("parents", [[[1, ROOT]], [[0]], [[PAD, ROOT]]])
def test_forests_out_of_order_are_refused(loaded, parents):
    session = loaded("llama").open(1, 8)
    with pytest.raises(ValueError, match=r"precedes its children"):
        session.forward(Nodes(tokens=np.ones_like(parents, np.int32), parents=np.array(parents, np.int32)))


def test_ties_go_to_the_lower_id(loaded):
    from steno.models._step import HFStep

    raw = torch.tensor([[[1.0, 3.0, 3.0, 2.0, 2.0, 2.0, 0.0], [5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0]]])
    step = HFStep(raw, {})
    assert step.argmax.tolist() == [[1, 0]]
    ids, best = step.top(4)
    assert ids.tolist() == [[[1, 2, 3, 4], [0, 1, 2, 3]]]
    assert best.tolist() == [[[3.0, 3.0, 2.0, 2.0], [5.0] * 4]]


def test_embeds_mix(loaded):
    """Half of two embeddings is what transformers makes of it."""
    model = loaded("gemma3")
    session = model.open(1, CAPACITY)
    session.prefill([[1, 2, 3]])
    pair = session.embed(np.array([[4, 5]], np.int32))
    blend = pair.mean(1, keepdims=True)
    nodes = Nodes(tokens=np.zeros((1, 1), np.int32), parents=np.array([[ROOT]], np.int32), embeds=blend)
    past = session.embed(np.array([[1, 2, 3]], np.int32))
    model.net.set_attn_implementation("eager")
    with torch.inference_mode():
        want = model.net(inputs_embeds=torch.from_numpy(np.concatenate([past, blend], 1)), use_cache=False).logits
    model.net.set_attn_implementation("steno")
    np.testing.assert_allclose(session.forward(nodes).logits[0, 0], want[0, -1].numpy(), atol=1e-4)


def test_facts_of_a_model(loaded):
    model, pinned = loaded("llama"), loaded("llama", 8)
    assert (model.backend, model.name, model.vocab, model.context) == ("hf", "llama", VOCAB, 256)
    assert model.eos == {2}
    assert model.weight_bytes() >= sum(p.numel() * 4 for p in model.net.parameters())
    assert len(model.fingerprint) == 32
    assert model.fingerprint != pinned.fingerprint
    assert loaded("opt").context == 256


def test_tied_weights_count_once(loaded):
    net = loaded("opt").net
    assert net.lm_head.weight.data_ptr() == net.get_input_embeddings().weight.data_ptr()
    assert loaded("opt").weight_bytes() == sum(p.numel() * 4 for p in net.parameters()) + sum(
        b.numel() * b.element_size() for b in net.buffers()
    )


def test_cache_bytes_are_those_of_the_buffers(loaded):
    session = loaded("llama").open(2, 32)
    assert session.cache_bytes() == {"open": 0}
    session.prefill([[1, 2], [3]])
    layers, both, rows, groups, dim, size = 3, 2, 2, 2, 8, 4
    assert session.cache_bytes() == {"open": layers * both * rows * groups * dim * size * session._cache.size}
    assert session._cache.size == 32


def test_rope_that_depends_on_the_batch_bounds_the_context(loaded, monkeypatch):
    model = loaded("llama")
    rope = {"rope_type": "dynamic", "original_max_position_embeddings": 64}
    monkeypatch.setattr(model.config, "rope_parameters", rope)
    assert model.context == 64


def test_context_bounds_the_capacity(loaded):
    session = loaded("gpt2").open(2, 10_000)
    assert session.caps.context == 256
    ids = Subject(model=loaded("gpt2")).ids(256)
    session.prefill([ids[:-1], ids[:3]])
    logits = session.forward(chains(ids[-1:], ids[3:4])).logits
    np.testing.assert_allclose(logits[0, 0], full(loaded("gpt2"), ids)[-1], atol=1e-4)
    assert session.room() == (1, 253)
