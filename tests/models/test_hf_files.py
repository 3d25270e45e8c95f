"""What the hf backend says about folders that are damaged or not for it: one sentence with the remedy."""

import json
import shutil
import sys
from importlib import util

import pytest
import torch
from safetensors.torch import load_file, save_file

from steno.core.errors import MissingExtra, ModelError
from steno.models import ModelSpec, hf, load


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder("llama"), tmp_path / "model")


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refused(path, words, error=ModelError, **spec):
    with pytest.raises(error, match=words) as caught:
        hf.load(path, ModelSpec(source=str(path), **spec))
    assert "\n" not in str(caught.value)


def test_door(copy):
    model = load(ModelSpec(source=str(copy), backend="hf", device="cpu"))
    assert model.backend == "hf"
    assert model.name == "model"


def test_config_unreadable(copy):
    (copy / "config.json").write_text('{"architectures": [')
    refused(copy, r"config.json cannot be read.*Fetch the model again")
    (copy / "config.json").write_text("[]")
    refused(copy, r"does not hold a JSON object")
    (copy / "config.json").write_bytes(b"\xff\xfe\x00")
    refused(copy, r"config.json cannot be read")


def test_architecture_is_no_causal_lm(copy):
    edit(copy / "config.json", architectures=["BertForMaskedLM"], model_type="bert")
    refused(copy, r"BertForMaskedLM, which is no causal language model")
    edit(copy / "config.json", architectures=None)
    refused(copy, r"names the architecture none")
    edit(copy / "config.json", architectures=["MyForCausalLM"], auto_map={"AutoModelForCausalLM": "own.MyForCausalLM"})
    refused(copy, r"brings its own code, which steno does not run")


def test_model_type_unknown(copy):
    edit(copy / "config.json", model_type="never_heard_of")
    refused(copy, r"transformers cannot load model.*never_heard_of")


def test_config_values_that_cannot_be(copy):
    edit(copy / "config.json", hidden_size=36)
    refused(copy, r"model")


def test_safetensors_truncated(copy):
    path = copy / "model.safetensors"
    data = path.read_bytes()
    for size in (0, 5, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        refused(copy, r"Fetch")
    path.write_bytes(data + b"\0")
    refused(copy, r"its header promises")
    path.write_bytes(data[:8] + b"x" * (len(data) - 8))
    refused(copy, r"header of .* is damaged")


def test_safetensors_missing(copy):
    (copy / "model.safetensors").unlink()
    refused(copy, r"no model.safetensors .fetch the model again")
    (copy / "pytorch_model.bin").write_bytes(b"")
    refused(copy, r"pytorch_model.bin, which may run code when read")


def test_shard_missing(copy):
    (copy / "model.safetensors").rename(copy / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    refused(copy, r"lacks weight files that its index names: model-00002-of-00002.safetensors")


def test_tensor_missing_or_of_another_shape(copy):
    path = copy / "model.safetensors"
    weights = load_file(path)
    save_file({k: v for k, v in weights.items() if "layers.1" not in k}, path, {"format": "pt"})
    refused(copy, r"lack what config.json asks for: model.layers.1.* and 8 more")
    save_file({**weights, "lm_head.weight": weights["lm_head.weight"][:-3].clone()}, path, {"format": "pt"})
    refused(copy, r"lm_head.weight|model")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_not_finite(copy, bad):
    path = copy / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.2.mlp.up_proj.weight"][3, 4] = bad
    save_file(weights, path, {"format": "pt"})
    refused(copy, r"contain NaN or Inf, in model.layers.2.mlp.up_proj.weight")


def test_tokenizer_larger_than_the_embedding(copy):
    path = copy / "tokenizer.json"
    path.write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 95}}, "added_tokens": []}))
    hf.load(copy, ModelSpec(source=str(copy)))
    path.write_text(json.dumps({"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 96, "content": "<x>"}]}))
    refused(copy, r"97 ids and the embedding only 96")
    path.write_text(json.dumps({"model": {"vocab": [["a", -1.0]] * 97}}))
    refused(copy, r"97 ids and the embedding only 96")


def test_extras_missing(copy, monkeypatch):
    find = util.find_spec
    for absent in ("torch", "transformers"):
        monkeypatch.setattr(hf, "find_spec", lambda name, absent=absent: None if name == absent else find(name))
        refused(copy, rf"{absent}, which is not installed. Run: pip install 'steno\[hf\]'", MissingExtra)
    edit(copy / "config.json", quantization_config={"quant_method": "compressed-tensors"})
    monkeypatch.setattr(hf, "find_spec", lambda name: None if name == "compressed_tensors" else find(name))
    refused(copy, r"compressed-tensors, which is not installed", MissingExtra)


def test_forms_and_devices(copy):
    refused(copy, r"no int8 arithmetic", weights="int8")
    if not torch.cuda.is_available():
        refused(copy, r"no CUDA device", device="cuda")
    model = hf.load(copy, ModelSpec(source=str(copy), weights="bf16", device="cpu"))
    assert model.net.dtype == torch.bfloat16
    session = model.open(1, 8)
    assert session.prefill([[1, 2]], last=True).dtype == "float32"


def test_logits_not_finite(copy):
    """Weights may all be finite and still overflow."""
    path = copy / "model.safetensors"
    weights = load_file(path)
    weights["lm_head.weight"][:] = 3e38
    save_file(weights, path, {"format": "pt"})
    refused(copy, r"logits that are not finite")


def test_an_architecture_that_does_not_fit_is_refused_not_served(tmp_path):
    """BLOOM places its attention biases by slot, not by position: the probe sees it."""
    import transformers

    config = transformers.BloomConfig(vocab_size=96, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BloomForCausalLM(config).save_pretrained(tmp_path)
    refused(tmp_path, r"BloomForCausalLM does not (fit|follow)")


def test_importing_the_door_imports_no_torch():
    import subprocess

    code = "import steno.models.hf, sys; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_loading_is_silent(copy, capfd, recwarn):
    hf.load(copy, ModelSpec(source=str(copy)))
    out = capfd.readouterr()
    assert out.out == out.err == ""
    assert not recwarn.list
