"""Round to nearest: the error bound, the packing, what loads where, and what it costs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from weights_tools import ids

from steno.core.errors import ModelError
from steno.models.checkpoint import Checkpoint, unpack
from steno.weights.rtn import Rtn, dequantise, pack, quantise, round_up

SCALE_TYPES = ["F32", "F16", "BF16"]


def test_a_worked_row():
    # Eight bits: 2.54 / 127 = 0.02 exactly to float32's eye; 1.0 / 0.02 = 50, -0.011 / 0.02 = -0.55.
    scales, _, q = quantise(np.array([[2.54, 1.0, -0.011, 0.0]], np.float32), 8, 4, "F32")
    assert q.tolist() == [[127, 50, -1, 0]]
    assert scales[0, 0] == pytest.approx(0.02)
    # Four bits: 7.5 / 7.5 = 1; 7.5 lies half a step above the grid's end, -7.5 rounds to even inside it.
    _, _, q = quantise(np.array([[7.5, -7.5, 0.4, 2.6]], np.float32), 4, 4, "F32")
    assert q.tolist() == [[7, -8, 0, 3]]


@pytest.mark.parametrize("dtype", SCALE_TYPES)
@pytest.mark.parametrize(("bits", "group"), [(8, 128), (4, 32), (4, 64), (4, 128)])
@pytest.mark.parametrize("law", ["normal", "heavy", "tiny", "one-sided"])
def test_error_is_at_most_half_a_step_of_the_stored_scale(dtype, bits, group, law):
    rng = np.random.default_rng(3)
    w = rng.standard_normal((24, 128)).astype(np.float32)
    w = {"normal": w, "heavy": w**5, "tiny": w * 2e-7, "one-sided": np.abs(w)}[law]
    scales, stored, q = quantise(w, bits, group, dtype)
    if dtype == "BF16":
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(stored.astype(np.float32), scales), "integers must be chosen for the scale on disk"
    assert (scales > 0).all()
    assert q.min() >= (-127 if bits == 8 else -8)
    assert q.max() <= (127 if bits == 8 else 7)
    step = np.repeat(scales, group, axis=1).astype(np.float64)
    assert (np.abs(w - q * step) <= step / 2 * (1 + 1e-6)).all()


def test_rows_of_zeros_stay_zeros():
    w = np.zeros((3, 64), np.float32)
    w[1, :32] = 1
    scales, _, q = quantise(w, 4, 32, "F16")
    assert np.isfinite(scales).all()
    assert np.array_equal(dequantise(q, scales)[[0, 2]], np.zeros((2, 64)))
    assert np.array_equal(q[1, 32:], np.zeros(32))


@pytest.mark.parametrize("dtype", SCALE_TYPES)
def test_round_up_gives_the_least_number_that_is_not_below(dtype):
    values = np.abs(np.random.default_rng(0).standard_normal(4000)) * 10.0 ** np.arange(-6, 2).repeat(500)
    got = torch.from_numpy(round_up(values, dtype)[0].astype(np.float64))
    form = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    assert torch.equal(got.to(form).double(), got), "not a number of that form"
    want = torch.from_numpy(values)
    assert (got >= want).all()
    below = torch.nextafter(got.to(form), torch.zeros((), dtype=form)).double()
    assert (below < want).all()


def test_coarse_scales_taken_after_the_integers_would_break_the_bound():
    """What rounding the scale last does; the test above would notice."""
    w = np.random.default_rng(3).standard_normal((64, 128)).astype(np.float32)
    fine, _, q = quantise(w, 8, 128, "F32")
    coarse = torch.from_numpy(fine).bfloat16().float().numpy()
    assert (np.abs(w - q * coarse) > coarse / 2 * (1 + 1e-6)).any()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [1, 7, 8, 9, 64, 130])
def test_packing_is_exact_and_is_what_compressed_tensors_does(columns, bits):
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

    q = np.random.default_rng(1).integers(-(1 << bits - 1), 1 << bits - 1, (5, columns)).astype(np.int8)
    words = pack(q, bits)
    assert np.array_equal(unpack(words, columns, bits), q)
    assert np.array_equal(words, pack_to_int32(torch.from_numpy(q), bits).numpy())
    assert np.array_equal(unpack_from_int32(torch.from_numpy(words.copy()), bits, torch.Size(q.shape)).numpy(), q)


def dense_twin(source: Path, out: Path) -> torch.nn.Module:
    """The source model with every quantised weight replaced by what the folder `out` says it is."""
    net = AutoModelForCausalLM.from_pretrained(source)
    stored = load_file(out / "model.safetensors")
    state = {}
    for name in stored:
        if name.endswith("_scale"):
            weight = name.removesuffix("_scale")
            shape = tuple(stored.get(f"{weight}_shape", torch.tensor(stored.get(weight, stored[name]).shape)).tolist())
            q = Checkpoint(out).raw(weight) if weight in stored else None
            if q is None:
                q = unpack(stored[f"{weight}_packed"].numpy(), shape[1], 4)
            state[weight] = torch.from_numpy(dequantise(np.asarray(q), stored[name].float().numpy()))
    assert not net.load_state_dict(state, strict=False).unexpected_keys
    assert state, "nothing was quantised"
    return net


@pytest.mark.parametrize("form", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "llama-tied", "qwen3", "qwen3-tied"])
@pytest.mark.parametrize("settings", [{"bits": 8}, {"bits": 4, "group": 32}])
def test_stock_transformers_loads_what_the_ledger_means(model, tmp_path, name, form, settings):
    source = model(name, form)
    Rtn(**settings).apply(source, tmp_path / "q")
    net, report = AutoModelForCausalLM.from_pretrained(tmp_path / "q", output_loading_info=True)
    assert not any(report.values()), report
    assert net.dtype == form
    with torch.no_grad():
        got, want = net(ids()).logits, dense_twin(source, tmp_path / "q")(ids()).logits
        far = AutoModelForCausalLM.from_pretrained(source)(ids()).logits
    assert torch.equal(got, want)
    assert not torch.equal(got, far)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_embeddings_and_head_too(model, tmp_path, name, bits):
    Rtn(bits=bits, embeddings=True, head=True).apply(model(name), tmp_path / "q")
    net, report = AutoModelForCausalLM.from_pretrained(tmp_path / "q", output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        got, want = net(ids()).logits, dense_twin(model(name), tmp_path / "q")(ids()).logits
    # At 4 bits the loader multiplies by bfloat16 scales in bfloat16.
    assert torch.allclose(got, want, atol=0 if bits == 8 else 5e-3)


@pytest.mark.parametrize("name", ["gemma2", "phi3", "opt", "mixtral"])
@pytest.mark.parametrize("bits", [8, 4])
def test_other_architectures_load(model, tmp_path, name, bits):
    ledger = Rtn(bits=bits).apply(model(name), tmp_path / "q")
    net, report = AutoModelForCausalLM.from_pretrained(tmp_path / "q", output_loading_info=True)
    assert not any(report.values()), report
    plain = AutoModelForCausalLM.from_pretrained(model(name))
    with torch.no_grad():
        got, want = net(ids()).logits, plain(ids()).logits
    assert 0 < (got - want).abs().max() < 0.5 * want.abs().max()
    kinds = {layer.name.rpartition(".")[2] for layer in ledger.layers}
    assert not kinds & {"gate", "lm_head", "embed_tokens"}
    assert len([x for x in ledger.layers if ".experts." in x.name]) == (24 if name == "mixtral" else 0)


def test_the_native_engine_takes_the_integers_as_they_are(model, tmp_path):
    Rtn().apply(model("llama"), tmp_path / "q")
    name = "model.layers.0.mlp.up_proj.weight"
    linear = Checkpoint(tmp_path / "q").linear(name, (128, 64))
    assert linear.ints is not None
    assert np.array_equal(linear.ints, load_numpy(tmp_path / "q" / "model.safetensors")[name])


def test_a_model_of_eight_bits_can_go_to_four(model, tmp_path):
    Rtn(embeddings=True).apply(model("llama-tied", torch.bfloat16), tmp_path / "q8")
    with pytest.raises(ModelError, match="already has 8-bit weights"):
        Rtn().apply(tmp_path / "q8", tmp_path / "no")
    Rtn(bits=4, group=32).apply(tmp_path / "q8", tmp_path / "q4")
    net, report = AutoModelForCausalLM.from_pretrained(tmp_path / "q4", output_loading_info=True)
    assert not any(report.values()), report
    eight = AutoModelForCausalLM.from_pretrained(tmp_path / "q8")
    embedding = "model.embed_tokens.weight"
    assert torch.equal(net.state_dict()[embedding], eight.state_dict()[embedding])


@pytest.mark.parametrize(("group", "low", "high"), [(32, 4.5, 4.53), (64, 4.25, 4.28), (128, 4.125, 4.155)])
def test_bits_per_weight(tmp_path, group, low, high):
    """16-bit scales: 4 + 16 / group, and 16 bytes per matrix for its shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32, hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(tmp_path / "m")
    ledger = Rtn(bits=4, group=group).apply(tmp_path / "m", tmp_path / "q")
    print(f"int4 group {group}: {ledger.bits_per_weight:.4f} bits per weight")
    assert low < ledger.bits_per_weight < high
    assert ledger.bits_per_weight == pytest.approx(4 + 16 / group + 7 * 128 / ledger.compressed_weights)


def test_groups_that_do_not_divide_name_the_layer_and_the_remedy(model, tmp_path):
    with pytest.raises(
        ModelError, match=r"groups of 64 do not divide the 96 inputs of model\.layers\.0\.mlp\.down_proj"
    ):
        Rtn(bits=4, group=64).apply(model("llama-odd"), tmp_path / "q")
    with pytest.raises(ModelError, match=r"--set weights\.rtn\.group=32"):
        Rtn(bits=4, group=64).apply(model("llama-odd"), tmp_path / "q")
    Rtn(bits=4, group=32).apply(model("llama-odd"), tmp_path / "q")


def test_what_cannot_be_quantised_is_refused(model, tmp_path):
    with pytest.raises(ModelError, match="Conv1D"):
        Rtn().apply(model("gpt2"), tmp_path / "q")
    with pytest.raises(ModelError, match=r"tied to the embedding.*embeddings=true"):
        Rtn(head=True).apply(model("llama-tied"), tmp_path / "q")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.layers.1.self_attn.k_proj.weight", "model.norm.weight"])
def test_weights_that_are_not_numbers_are_refused(model, tmp_path, bad, name):
    source = tmp_path / "m"
    source.mkdir()
    tensors = load_file(model("llama") / "model.safetensors")
    tensors[name].view(-1)[5] = bad
    save_file(tensors, source / "model.safetensors")
    (source / "config.json").write_text((model("llama") / "config.json").read_text())
    with pytest.raises(ModelError, match=f"{name} holds NaN or infinity"):
        Rtn().apply(source, tmp_path / "q")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_the_configuration_says_what_was_left_alone(model, tmp_path):
    Rtn().apply(model("llama"), tmp_path / "q")
    scheme = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    assert scheme["ignore"] == ["lm_head"]
    assert scheme["config_groups"]["group_0"]["format"] == "int-quantized"
