"""The native backend: the contract, transformers as the oracle, and what it refuses."""

import json
import os

import native_tiny
import numpy as np
import pytest
from contract import CHECKS, Subject
from native_tiny import FAMILIES, chain, forest, ids

from steno.core import Keeps, Nodes, Want
from steno.core.errors import CapsError, ModelError, PromptError, UserError
from steno.models import _engine, native
from steno.models._fill import FORMS
from steno.models.checkpoint import Checkpoint
from steno.weights.rtn import Rtn, dequantise, quantise

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """name -> (folder, transformers model)."""
    root, done = tmp_path_factory.mktemp("native"), {}

    def get(name):
        if name not in done:
            done[name] = root / name, native_tiny.make(name, root / name)
        return done[name]

    return get


@pytest.fixture
def model(made):
    return native.load(made("llama")[0], threads=2)


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Memory that must not be read is NaN, and every thread is used, in all of these tests."""
    monkeypatch.setenv("STENO_POISON", "1")
    _engine.insist_on_threads(True)
    yield
    _engine.insist_on_threads(False)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3"])
@pytest.mark.parametrize("weights", ["fp32", "int8"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_contract(made, check, weights, name):
    # atol 0: the engine promises bits, across sessions too.
    check(Subject(model=native.load(made(name)[0], weights=weights, threads=2), atol=0.0))


@pytest.mark.parametrize("name", FAMILIES)
def test_agrees_with_transformers(made, name):
    folder, oracle = made(name)
    text = ids(120)
    with torch.no_grad():
        states = oracle(torch.tensor([text]), output_hidden_states=True)
    want = states.logits[0].numpy()
    for weights, bound in (("fp32", 1e-4), ("bf16", 0.2), ("int8", 0.6)):
        session = native.load(folder, weights=weights, threads=2).open(1, 200)
        session.prefill([text[:50]])
        step = session.forward(forest([chain(text[50:])]), Want(hidden=(0, 1)))
        worst = np.abs(step.logits[0] - want[50:]).max()
        agree = (step.argmax[0] == want[50:].argmax(-1)).mean()
        print(
            f"{name} {weights}: max |difference| {worst:.2e}, logit std {want.std():.2f}, top-1 agreement {agree:.3f}"
        )
        assert worst <= bound * (1 if weights == "fp32" else want.std())
        if weights == "fp32":
            for layer in (0, 1):
                np.testing.assert_allclose(
                    step.hidden(layer)[0], states.hidden_states[layer][0, 50:].numpy(), atol=1e-4
                )


@pytest.mark.parametrize("form", ["int4", "int4-64", "int4-128"])
@pytest.mark.parametrize("name", ["llama", "llama-tied-biased", "qwen3"])
def test_int4_is_the_model_of_the_rounded_weights(made, name, form):
    """Against transformers with the same rounding done in numpy, only what activations lose is left."""
    folder, _ = made(name)
    oracle = native_tiny.make(name, folder)
    group = FORMS[form].group
    with torch.no_grad():
        for key, weight in oracle.named_parameters():
            if weight.ndim == 2 and "layers" in key:
                weight.copy_(torch.from_numpy(rounded(weight.numpy(), 4, group)))
        head = oracle.get_output_embeddings().weight
        head.copy_(torch.from_numpy(rounded(head.numpy(), 8, head.shape[1])))
        want = oracle(torch.tensor([ids(90)])).logits[0].numpy()
    session = native.load(folder, weights=form, threads=2).open(1, 100)
    step = session.forward(forest([chain(ids(90))]))
    worst = np.abs(step.logits[0] - want).max() / want.std()
    print(f"{name} {form}: max |difference| {worst:.3f} of the logits' spread")
    assert worst <= 0.3
    assert (step.argmax[0] == want.argmax(-1)).mean() >= 0.8


def rounded(weight: np.ndarray, bits: int, group: int) -> np.ndarray:
    """`weight` [N, K] after round to nearest with a scale per `group` columns, as `weights.rtn` does it."""
    columns = weight.shape[1]
    padded = np.pad(weight, ((0, 0), (0, -columns % group)))
    scales, _, integers = quantise(padded, bits, group, "F16" if bits == 4 else "F32")
    return dequantise(integers, scales)[:, :columns]


@pytest.mark.parametrize("group", [32, 64, 128])
def test_an_int4_checkpoint_keeps_its_integers(tmp_path, group):
    """What weights.rtn wrote runs as it is: rounding the restored floats once more would move weights."""
    native_tiny.make(
        "llama", tmp_path / "m", hidden_size=128, intermediate_size=256, head_dim=64, num_attention_heads=2
    )
    Rtn(bits=4, group=group).apply(tmp_path / "m", tmp_path / "q")
    model = native.load(tmp_path / "q")
    assert model.weights == ("int4" if group == 32 else f"int4-{group}")
    # The first matrix lies behind two norms of 128 floats: panels of 16 rows, 8 columns of them in 64 bytes.
    want = Checkpoint(tmp_path / "q").linear("model.layers.0.self_attn.q_proj.weight", (128, 128)).ints
    packed = model.engine.weights()[1024 : 1024 + 128 * 64].reshape(8, 16, 16, 4)
    low, high = (packed & 15).astype(np.int8) - 8, (packed >> 4).astype(np.int8) - 8
    np.testing.assert_array_equal(np.concatenate([low, high], -1).transpose(0, 2, 1, 3).reshape(128, 128), want)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "llama-tied-biased"])
def test_half_precision_files_are_read_exactly(tmp_path, name, dtype):
    oracle = native_tiny.make(name, tmp_path, dtype)
    with torch.no_grad():
        want = oracle(torch.tensor([ids(30)])).logits[0].numpy()
    session = native.load(tmp_path, weights="fp32").open(1, 64)
    np.testing.assert_allclose(session.forward(forest([chain(ids(30))])).logits[0], want, atol=1e-4)
    embeds = session.embed(np.array([ids(5)], np.int32))
    assert embeds.shape == (1, 5, 42)
    np.testing.assert_array_equal(embeds[0], oracle.get_input_embeddings().weight.detach().numpy()[ids(5)])


def test_shards(made, tmp_path):
    _, oracle = made("llama")
    oracle.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    whole, parts = (native.load(p).fingerprint for p in (made("llama")[0], tmp_path))
    assert whole == parts


def test_a_slice_of_layers(model):
    """Layers [0, 2) then [2, 3) from their output say what all three say."""
    session = model.open(1, 32)
    session.prefill([ids(9)])
    nodes = forest([chain(ids(4, 1))])
    want = np.array(session.forward(nodes).logits)
    low = session.forward(Nodes(tokens=nodes.tokens, parents=nodes.parents, layers=(0, 2)), Want(hidden=(2,)))
    early, middle = np.array(low.logits), np.array(low.hidden(2))
    np.testing.assert_array_equal(session.head(middle), early)
    with pytest.raises(ValueError, match="over all layers"):
        session.commit([[0]])
    top = Nodes(tokens=nodes.tokens, parents=nodes.parents, embeds=middle, layers=(2, 3))
    np.testing.assert_array_equal(session.forward(top).logits, want)
    with pytest.raises(ValueError, match=r"needs nodes\.embeds"):
        session.forward(Nodes(tokens=nodes.tokens, parents=nodes.parents, layers=(1, 3)))


def test_records(model):
    assert (model.backend, model.vocab, model.context, model.eos) == ("native", 301, 640, frozenset({2}))
    assert model.weight_bytes() > 0
    caps = model.open(1, 16).caps
    assert caps.chain_exact is caps.tree_exact is Keeps.BITS
    assert caps.max_width == 256


def test_fingerprint_names_the_weights_and_the_arithmetic(made):
    folder = made("llama")[0]
    prints = {native.load(folder, weights=w, threads=t).fingerprint for w in ("int8", "fp32") for t in (1, 2)}
    assert len(prints) == 2
    assert native.load(made("multi-head")[0]).fingerprint not in prints


def test_views_outlive_the_session_and_old_steps_refuse(model):
    session = model.open(1, 300)
    step = session.forward(forest([chain(ids(3))]))
    logits = step.logits
    kept = logits.copy()
    session.forward(forest([chain(ids(200))]))
    with pytest.raises(ValueError, match="this step is over"):
        _ = step.argmax
    del session, step
    np.testing.assert_array_equal(logits[0, 0, :5].shape, kept[0, 0, :5].shape)


def test_int64_and_strided_nodes_are_taken(model):
    session = model.open(1, 32)
    tokens, parents = forest([chain(ids(4))]).tokens, forest([chain(ids(4))]).parents
    want = np.array(session.forward(Nodes(tokens=tokens, parents=parents)).logits)
    wide = np.repeat(tokens.astype(np.int64), 2, axis=1)[:, ::2]
    np.testing.assert_array_equal(session.forward(Nodes(tokens=wide, parents=parents)).logits, want)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="whole numbers"):
        session.forward(Nodes(tokens=tokens.astype(np.float32), parents=parents))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tokens", "parents", "error", "words"),
    [
        ([[5, 6]], [[-1]], ValueError, "shape of nodes.parents"),
        ([[5], [6]], [[-1], [-1]], ValueError, "one line per row"),
        ([[5, 6]], [[1, -1]], ValueError, "earlier node"),
        ([[5, 6]], [[-1, -3]], ValueError, "earlier node"),
        ([[5, 6, 7]], [[-1, -2, 0]], ValueError, "end of a row"),
        ([[5, 301]], [[-1, 0]], PromptError, "outside the vocabulary of 301"),
        ([[-1]], [[-1]], PromptError, "outside the vocabulary"),
        ([[5] * 9], [list(range(-1, 8))], PromptError, "larger capacity"),
        ([[5] * 257], [[-1] * 257], ValueError, "at most 256"),
    ],
)
def test_bad_nodes(model, tokens, parents, error, words):
    session = model.open(1, 16)
    session.prefill([ids(8)])
    with pytest.raises(error, match=words):
        session.forward(Nodes(tokens=np.array(tokens, np.int32), parents=np.array(parents, np.int32)))
    assert session.lengths == (8,)


def test_bad_calls(model):
    session = model.open(2, 16)
    session.prefill([ids(3), ids(4)])
    nodes = forest([chain([5, 6]), chain([7])])
    for bad, words in (([[0]], "1 paths for 2 rows"), ([[0, 0], []], "not a child"), ([[], [1]], "no node 1")):
        session.forward(nodes)
        with pytest.raises(ValueError, match=words):
            session.commit(bad)
    for call, words in (
        (lambda: session.crop([3]), "1 lengths for 2 rows"),
        (lambda: session.crop([4, 4]), "cannot be cropped to 4"),
        (lambda: session.fork([2]), "rows 0 to 1"),
        (lambda: session.fork([]), "at least one row"),
        (lambda: session.forward(nodes).top(302), "between 1 and"),
        (lambda: session.forward(nodes, Want(logits=False)).logits, "asked for no logits"),
        (lambda: session.forward(nodes).hidden(1), "was not asked for"),
        (lambda: session.forward(nodes, Want(hidden=(4,))), "is not computed"),
        (lambda: session.head(np.zeros(41, np.float32)), "expected"),
        (lambda: model.open(0, 8), "at least 1"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(PromptError, match="outside the vocabulary"):
        session.prefill([[9999], []])
    with pytest.raises(PromptError, match="list of token ids"):
        session.prefill([["a"], []])  # type: ignore[list-item]
    nan = Nodes(tokens=nodes.tokens, parents=nodes.parents, embeds=np.full((2, 2, 42), np.nan, np.float32))
    with pytest.raises(ValueError, match="NaN"):
        session.forward(nan)


def test_windows_refuse_positions(made):
    session = native.load(made("mistral")[0]).open(1, 16)
    nodes = forest([chain([5])])
    assert not session.caps.visible
    with pytest.raises(CapsError, match="sliding window"):
        session.forward(Nodes(tokens=nodes.tokens, parents=nodes.parents, positions=np.zeros((1, 1), np.int32)))


def test_takes_only_forms_in_numbers(model):
    class Form:
        def due(self, length):
            return max(0, length - 4)

        def layout(self, head_dim):
            return None

    with pytest.raises(CapsError, match="in the form Form"):
        model.open(1, 16, Form())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel.*--backend hf"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}, "rope_type is 'yarn'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"hidden_size": 48}, r"shape \[.*42\], config.json asks for \[.*48\]"),
        ({"num_hidden_layers": 4}, "model.layers.3.* is missing"),
        ({"num_hidden_layers": 2}, "no place for tensor model.layers.2"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_key_value_heads": 4}, "does not divide"),
        ({"quantization_config": {"quant_method": "gptq"}}, "'gptq'"),
    ],
)
def test_models_it_refuses(made, tmp_path, change, words):
    folder = made("llama")[0]
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ModelError, match=words):
        native.load(tmp_path)


def test_bad_settings(made, monkeypatch):
    folder = made("llama")[0]
    with pytest.raises(UserError, match="no form 'int3'"):
        native.load(folder, weights="int3")
    for text, words in (("0", "between 1 and 256"), ("many", "STENO_THREADS")):
        monkeypatch.setenv("STENO_THREADS", text)
        with pytest.raises(UserError, match=words):
            native.load(folder)
    monkeypatch.delenv("STENO_THREADS")
    monkeypatch.setenv("STENO_ISA", "mmx")
    with pytest.raises(UserError, match=r"it can run .*scalar"):
        native.load(folder)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_process_has_its_own_threads(model):
    nodes = forest([chain(ids(5))])
    want = int(model.open(1, 16).forward(nodes).argmax[0, -1])
    child = os.fork()
    if child == 0:
        try:
            os._exit(want != int(model.open(1, 16).forward(nodes).argmax[0, -1]))
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
