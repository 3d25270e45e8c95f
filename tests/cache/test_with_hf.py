"""Cache forms under real attention: tiny random models on the hf backend.

The claim that matters: a session in a compressed form gives the same tokens, bit for bit in pinned mode, whether they
are decoded one at a time or many at a time from drafts that are sometimes right.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from steno.cache import CacheKnob, aqua, kvheads, less
from steno.cache._ledger import bits_per_value
from steno.cache._turn import turn
from steno.cache._witness import received, witness
from steno.cache.adaquant import AdaQuant, with_norms
from steno.cache.affine import Affine
from steno.cache.aqua import Aqua
from steno.cache.cachegen import CacheGen
from steno.cache.citrus import Citrus
from steno.cache.dense import Dense
from steno.cache.ems import EMS
from steno.cache.gear import Gear
from steno.cache.h2o import H2O
from steno.cache.kvheads import KVHeads
from steno.cache.kvquant import KVQuant
from steno.cache.lacache import LaCache
from steno.cache.less import Less
from steno.cache.mikv import MiKV
from steno.cache.minicache import MiniCache
from steno.cache.prefixkv import PrefixKV, with_shares
from steno.cache.prune import Prune
from steno.cache.razor import Razor, with_heads
from steno.cache.rotatekv import RotateKV
from steno.cache.sentencekv import SentenceKV
from steno.cache.snap import Snap
from steno.cache.specache import SpeCache
from steno.cache.staircase import Staircase
from steno.cache.vidkv import VidKV
from steno.cache.window import Window
from steno.core import ROOT, Keeps, Model, Nodes, Session
from steno.core.errors import CapsError
from steno.core.tier import Observer
from steno.models import ModelSpec, load

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

import tiny

FORMS = [
    Affine(key_bits=8, value_bits=8, group=8, residual=8, block=8),
    Affine(key_bits=2, value_bits=2, group=8, residual=16, block=16),
    Affine(key_bits=4, value_bits=3, group=16, residual=0, block=16),
    Window(sinks=2, window=12, block=4),
    KVQuant(residual=8, block=32),
    H2O(heavy=12, residual=8, block=4),
    Staircase(first=8, second=16, residual=8, block=8),
]
MORE = [
    Gear(residual=8, block=32),
    RotateKV(group=8, residual=8, block=32),
    VidKV(residual=8),
    AdaQuant(residual=8, block=32),
    Snap(budget=12, window=4, kernel=3, residual=8, block=4),
    Prune(tokens=24, bits=3, group=8, window=4, kernel=3, residual=8, block=4),
    MiKV(important=8, low_bits=2, group=8, residual=4, block=8),
    LaCache(budget=16, residual=8, block=8),
    PrefixKV(budget=12, shares=(1.0, 2.0), residual=8, block=4),
    Razor(heads=(1, 4), window=8, residual=8, block=4),
    EMS(budget=12, similarity=0.3, window=4, kernel=3, residual=8, block=4),
    Citrus(budget=12, instruction=6, residual=8, block=4),
    SentenceKV(pool=24, budget=12, ends=(3, 9, 17), longest=5, window=4, kernel=3, residual=8, block=4),
    CacheGen(residual=8, block=32),
    KVHeads(residual=8, block=8),
    Aqua(residual=8, block=32),
    MiniCache(start=0, residual=8, block=32),
    SpeCache(fetch=6, residual=8, block=32),
]
ALL = [*FORMS, *(pytest.param(form, marks=pytest.mark.slow) for form in MORE)]
PROMPTS = [[5, 9, 23, 71, 40, 11, 3] * 5, [17, 4], [(7 * i * i + 3) % tiny.VOCAB for i in range(21)]]
WIDTH = 8


@pytest.fixture(scope="module", params=["llama", pytest.param("qwen3", marks=pytest.mark.slow)])
def folder(request, tmp_path_factory) -> Path:
    return tiny.make(request.param, tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def pinned(folder) -> Model:
    return load(ModelSpec(source=str(folder), backend="hf", pinned=True, width=WIDTH, threads=1))


@pytest.fixture(scope="module")
def free(folder) -> Model:
    return load(ModelSpec(source=str(folder), backend="hf", threads=1))


def chains(rows: Sequence[Sequence[int]]) -> Nodes:
    """A chain of nodes per row."""
    width = max(map(len, rows))
    tokens = np.zeros((len(rows), width), np.int32)
    parents = np.full((len(rows), width), -2, np.int32)
    for b, row in enumerate(rows):
        tokens[b, : len(row)] = row
        parents[b, : len(row)] = np.arange(ROOT, len(row) - 1)
    return Nodes(tokens=tokens, parents=parents)


def decode(
    session: Session, prompts: Sequence[Sequence[int]], count: int, truth: Sequence[Sequence[int]] | None = None
) -> tuple[list[list[int]], list[list[np.ndarray]], int]:
    """(ids, logits of each, forwards) of greedy decoding; drafts are `truth` with every fifth token wrong."""
    rows = range(len(prompts))
    session.prefill([prompt[:-1] for prompt in prompts])
    out: list[list[int]] = [[] for _ in prompts]
    logits: list[list[np.ndarray]] = [[] for _ in prompts]
    forwards = 0
    while min(map(len, out)) < count:
        trees: list[list[int]] = []
        for b in rows:
            done = len(out[b])
            pending = out[b][-1] if out[b] else prompts[b][-1]
            ahead = min(session.room()[b], session.caps.max_width, WIDTH) - 1 if truth else 0
            drafts = list(truth[b][done : done + ahead]) if truth else []
            drafts = [(t + 1) % tiny.VOCAB if (done + i + b) % 5 == 4 else t for i, t in enumerate(drafts)]
            trees.append([pending, *drafts] if done < count else [])
        step = session.forward(chains(trees))
        forwards += 1
        paths = []
        for b, tree in enumerate(trees):
            path = list(range(min(1, len(tree))))
            while path:
                out[b].append(int(step.argmax[b, path[-1]]))
                logits[b].append(step.logits[b, path[-1]].copy())
                if len(path) == len(tree) or tree[len(path)] != out[b][-1]:
                    break
                path.append(len(path))
            paths.append(path)
        session.commit(paths)
    return [row[:count] for row in out], [row[:count] for row in logits], forwards


@pytest.mark.parametrize("form", ALL, ids=repr)
def test_speculative_and_compressed_is_greedy_and_compressed_bit_for_bit(pinned, form):
    count = 60
    session = pinned.open(3, 128, form)
    assert session.caps.chain_exact is Keeps.BITS
    ids, logits, forwards = decode(session, PROMPTS, count)
    drafted, their_logits, their_forwards = decode(pinned.open(3, 128, form), PROMPTS, count, truth=ids)
    assert drafted == ids
    for ours, theirs in zip(logits, their_logits, strict=True):
        np.testing.assert_array_equal(np.stack(ours), np.stack(theirs))
    assert forwards == count
    assert their_forwards < count * 0.7
    # Something was sealed, so the promise was put to the test.
    assert sum(session.cache_bytes().values()) > session.cache_bytes()["open"]


@pytest.mark.parametrize("form", ALL, ids=repr)
def test_compression_changes_something(pinned, form):
    """A form that is quietly ignored would pass every equality here."""
    _, dense, _ = decode(pinned.open(3, 128), PROMPTS, 40)
    _, mine, _ = decode(pinned.open(3, 128, form), PROMPTS, 40)
    assert not np.array_equal(np.stack(dense[0]), np.stack(mine[0]))


@pytest.mark.parametrize("form", ALL, ids=repr)
def test_any_chunking_of_the_prefill_is_the_same(pinned, free, form):
    for model, atol in ((pinned, 0.0), (free, 1e-4)):
        whole = model.open(3, 128, form)
        want = whole.prefill(PROMPTS, last=True)
        for size in (1, 3, 10):
            parts = model.open(3, 128, form)
            got = [None] * 3
            for start in range(0, max(map(len, PROMPTS)), size):
                chunk = [prompt[start : start + size] for prompt in PROMPTS]
                last = parts.prefill(chunk, last=True)
                got = [last[b] if chunk[b] else got[b] for b in range(3)]
            np.testing.assert_allclose(np.stack(got), want, atol=atol, rtol=0)
            # The open buffer has room for the widest forward as well, so it alone may differ.
            sizes = [{part: size for part, size in s.cache_bytes().items() if part != "open"} for s in (parts, whole)]
            assert sizes[0] == sizes[1]


@pytest.mark.parametrize("form", FORMS, ids=repr)
def test_rows_do_not_feel_each_other(free, form):
    batch = free.open(3, 128, form).prefill(PROMPTS, last=True)
    for b, prompt in enumerate(PROMPTS):
        alone = free.open(1, 128, form).prefill([prompt], last=True)
        np.testing.assert_allclose(batch[b], alone[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("form", FORMS, ids=repr)
def test_forks_go_their_own_ways(pinned, form):
    session = pinned.open(3, 128, form)
    session.prefill(PROMPTS)
    twin = session.fork([0, 0, 2])
    tails = [[1, 2, 3] * 9, [4, 5] * 8, [6] * 20]
    twin.prefill(tails)
    got = session.prefill([[8] * 12] * 3, last=True)
    alone = pinned.open(3, 128, form)
    alone.prefill(PROMPTS)
    np.testing.assert_array_equal(got, alone.prefill([[8] * 12] * 3, last=True))
    fresh = pinned.open(3, 128, form)
    fresh.prefill([PROMPTS[r] + tail for r, tail in zip((0, 0, 2), tails, strict=True)])
    again = [twin.prefill([[7]] * 3, last=True), fresh.prefill([[7]] * 3, last=True)]
    np.testing.assert_array_equal(*again)


@pytest.mark.parametrize(
    "form", [Dense(), Affine(residual=128, key_bits=2, value_bits=2), Window(window=1024)], ids=repr
)
def test_a_full_budget_is_dense(pinned, free, form):
    """Where nothing is ever sealed, a form costs nothing: the same bits, the same caps."""
    for model in (pinned, free):
        session, plain = model.open(3, 128, form), model.open(3, 128)
        assert session.caps == plain.caps
        ids, logits, _ = decode(session, PROMPTS, 30)
        want, want_logits, _ = decode(plain, PROMPTS, 30)
        assert ids == want
        np.testing.assert_array_equal(np.stack(logits[0]), np.stack(want_logits[0]))


def test_affine_approaches_dense_with_its_bits(free):
    prompt = [[(11 * i * i + i) % tiny.VOCAB for i in range(120)]]
    want = free.open(1, 128).prefill(prompt, last=True)
    gaps = []
    for bits in (2, 3, 4, 8):
        form = Affine(key_bits=bits, value_bits=bits, group=8, residual=8, block=8)
        gaps.append(float(np.abs(free.open(1, 128, form).prefill(prompt, last=True) - want).mean()))
    assert gaps[0] > gaps[1] > gaps[2] > 4 * gaps[3] > 0


def test_window_is_a_masked_model(free):
    """The form against transformers' own eager attention under the mask that defines the form."""
    form = Window(sinks=2, window=12, block=4)
    prompt = PROMPTS[0] + PROMPTS[2]
    got = free.open(1, 128, form).prefill([prompt], last=True)
    place = torch.arange(len(prompt))
    seen = (place[:, None] >= place) & ((place < 2) | (place[:, None] - place < 12))
    mask = torch.zeros(seen.shape).masked_fill_(~seen, torch.finfo(torch.float32).min)[None, None]
    with torch.inference_mode():
        want = free.net(input_ids=torch.tensor([prompt]), attention_mask=mask, use_cache=False).logits[0, -1]
    np.testing.assert_allclose(got[0], want.numpy(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("form", FORMS, ids=repr)
def test_the_open_buffer_is_as_small_as_it_says(free, form):
    """cache_bytes against the storages of the session, and the buffer against what the form allows to be open."""
    capacity = 200
    session = free.open(1, capacity, form)
    session.prefill([[i % tiny.VOCAB for i in range(capacity - 20)]])
    layers, groups, dim = 3, 2, 8
    told = session.cache_bytes()
    live = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for layer in session._cache.live()
        for t in layer.buffers()
    }
    assert told["open"] == sum(live.values())
    most = max(n - form.due(n) for n in range(capacity + 1))
    per_token = 2 * layers * groups * dim * 4
    if isinstance(session._cache.tier, Observer):
        # Queries of four heads stand beside the keys of two.
        per_token *= 2
    # The nodes of a forward stand in the buffer too, a prefill chunk of a block at the most.
    assert told["open"] <= per_token * (most + max(form.block, 1) + WIDTH)
    assert told["open"] < per_token * capacity / 2


def test_bits_per_value_of_a_live_session(free):
    form = Affine(key_bits=2, value_bits=2, group=32, residual=32, block=32)
    session = free.open(1, 256, form)
    session.prefill([[i % tiny.VOCAB for i in range(250)]])
    parts = session.cache_bytes()
    tier = session._cache.tier
    sealed = tier.sealed[0]
    assert sealed == 192
    # Head width 8: the value groups are 8 wide, 2 + (32/32 + 32/8) / 2 = 4.5 bits. Wide heads have fewer.
    assert bits_per_value(sum(size for part, size in parts.items() if part != "open"), tier.shape, sealed) == 4.5


def test_crop_below_what_is_sealed_is_refused(free):
    session = free.open(1, 128, FORMS[0])
    session.prefill([PROMPTS[0]])
    with pytest.raises(CapsError, match="sealed"):
        session.crop([3])


def test_a_form_is_checked_when_a_session_opens():
    assert all(isinstance(form, CacheKnob) for form in FORMS)


def eager_attention(folder: Path, prompt: list[int]) -> tuple[torch.Tensor, ...]:
    """Attention [1, H, T, T] of every layer, by the eager code of transformers."""
    net = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.inference_mode():
        return net(torch.tensor([prompt]), output_attentions=True).attentions


def test_what_a_tier_observes_are_the_models_own_queries(free, folder):
    """Sum, over the keys, of attention as the eager code of transformers computes it, for the last few tokens."""
    knob = Snap(budget=6, window=5, kernel=1, residual=5, block=32)
    prompt = [(11 * i * i + 5) % tiny.VOCAB for i in range(37)]
    session = free.open(1, 64, knob)
    session.prefill([prompt])
    got = [session._cache.tier.materialise(layer)[2][0].tolist() for layer in range(3)]
    maps = eager_attention(folder, prompt)
    for layer, attention in enumerate(maps):
        mass = attention[0, :, -5:, :32].unflatten(0, (2, 2)).mean(1).sum(1)
        assert got[layer] == mass.topk(6).indices.sort(1).values.tolist()


def test_keys_before_rotation_are_what_the_model_computed(free):
    """Turned back, the keys of the first layer are its own projection of the embeddings."""
    net, rope = free.net, free.rope
    assert rope is not None
    prompt = [(11 * i * i + 5) % tiny.VOCAB for i in range(40)]
    tier_of = free.open(1, 64, Snap(budget=64, window=5, kernel=1, residual=5, block=32))
    tier_of.prefill([prompt])
    k, _, where = tier_of._cache.tier.materialise(0)
    block = net.model.layers[0]
    with torch.inference_mode():
        x = block.input_layernorm(net.model.embed_tokens(torch.tensor([prompt])))
        want = block.self_attn.k_proj(x)[0].unflatten(-1, (2, 8)).transpose(0, 1)
        if hasattr(block.self_attn, "k_norm"):
            want = block.self_attn.k_norm(want)
    torch.testing.assert_close(turn(k[0], rope, where[0], back=True), want[:, : k.shape[2]], atol=1e-4, rtol=0)


def test_what_a_witness_sees_is_what_the_model_attends_to(free, folder):
    """Attention received, from the witness and from the eager code of transformers; the fitted knobs fit the model."""
    prompt = [(11 * i * i + 5) % tiny.VOCAB for i in range(37)]
    maps = eager_attention(folder, prompt)
    for seen, attention in zip(next(witness(free, [prompt])), maps, strict=True):
        torch.testing.assert_close(received(seen), attention[0].mean((0, 1)), atol=1e-5, rtol=0)
    fitted = with_shares(PrefixKV(budget=8), free, [prompt, prompt[:20]])
    assert len(fitted.shares) == 3
    assert sum(fitted.shares) == pytest.approx(3, abs=1e-3)
    heads = with_heads(Razor(), free, tokens=20).heads
    assert set(heads) <= set(range(6))
    assert 1 <= len(heads) <= 3
    norms = with_norms(AdaQuant(), free, [prompt])
    keys = next(witness(free, [prompt]))[1].k
    assert norms.key_norms[1] == pytest.approx(float(torch.linalg.svdvals(keys)[:, 0].mean()), rel=1e-3)


def test_a_basis_is_fitted_to_keys_before_rotation(free, tmp_path):
    """With every direction kept the fitted form is dense to rounding, through the model's own rotation."""
    prompt = [(11 * i * i + 5) % tiny.VOCAB for i in range(60)]
    knob = kvheads.fit(KVHeads(keep=200, residual=4, block=8), free, [prompt], tmp_path / "basis.safetensors")
    want = free.open(1, 64).prefill([prompt], last=True)
    np.testing.assert_allclose(free.open(1, 64, knob).prefill([prompt], last=True), want, atol=5e-3, rtol=0)
    few = replace(knob, keep=100)
    mean = replace(few, basis="")
    gaps = [float(np.abs(free.open(1, 64, form).prefill([prompt], last=True) - want).mean()) for form in (few, mean)]
    assert 0.01 < gaps[0] < gaps[1]
    # Predictors are fitted on the same text, so they must help on it.
    plain = Aqua(residual=4, block=32)
    told = aqua.fit(plain, free, [prompt], tmp_path / "aqua.safetensors")
    near, far = (float(np.abs(free.open(1, 64, f).prefill([prompt], last=True) - want).mean()) for f in (told, plain))
    assert near < far


@pytest.mark.slow
def test_a_kernel_learns_what_eviction_loses(free, tmp_path):
    """On the text it is trained on, the state brings logits nearer to those of a dense cache than eviction alone."""
    prompt = [(11 * i * i + 5) % tiny.VOCAB for i in range(120)]
    plain = Less(heavy=8, residual=4, block=8)
    told = less.fit(plain, free, [prompt], tmp_path / "less.safetensors", steps=100)
    want = free.open(1, 128).prefill([prompt], last=True)
    near, far = (float(np.abs(free.open(1, 128, f).prefill([prompt], last=True) - want).mean()) for f in (told, plain))
    assert near < 0.8 * far


def test_a_model_that_turns_no_keys_is_known(tmp_path):
    spec = ModelSpec(source=str(tiny.make("gpt2", tmp_path / "gpt2")), backend="hf", threads=1)
    assert load(spec).rope is None
