"""steno's own backends open what the room writes."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from weights_tools import ids

from steno.core.errors import ModelError
from steno.models import ModelSpec, load
from steno.weights.lowrank import LowRank
from steno.weights.rtn import Rtn


def last_logits(folder, backend: str, form: str) -> tuple[np.ndarray, str]:
    found = load(ModelSpec(source=str(folder), backend=backend, weights=form, threads=1))
    rows = found.open(1, 32).prefill([ids()[0].tolist()], last=True)
    return np.asarray(rows)[0], found.backend


def stock(folder) -> np.ndarray:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)(ids()).logits[0, -1].numpy()


@pytest.mark.parametrize("backend", ["hf", "native"])
@pytest.mark.parametrize("knob", [Rtn(), Rtn(bits=4, group=32), Rtn(embeddings=True, head=True)], ids=str)
@pytest.mark.parametrize("name", ["llama", "llama-tied", "qwen3"])
def test_quantised_folders(model, tmp_path, name, knob, backend):
    if backend == "native":
        pytest.importorskip("steno.models._engine")
    knob.apply(model(name), tmp_path / "q")
    got, _ = last_logits(tmp_path / "q", backend, "fp32")
    assert np.abs(got - stock(tmp_path / "q")).max() < 1e-4


@pytest.mark.parametrize("name", ["llama", "opt", "mixtral"])
def test_factored_folders_without_trusting_their_code(model, texts, tmp_path, name):
    LowRank(keep=0.7).apply(model(name), tmp_path / "out", calibration=texts)
    want = stock(tmp_path / "out")
    code = tmp_path / "out" / "modeling_steno_lowrank.py"
    code.write_text("raise RuntimeError('this code must not run')")
    got, backend = last_logits(tmp_path / "out", "auto", "fp32")
    assert backend == "hf"
    assert np.abs(got - want).max() < 1e-4


def test_the_native_engine_refuses_factors_in_words(model, texts, tmp_path):
    pytest.importorskip("steno.models._engine")
    LowRank(keep=0.7).apply(model("llama"), tmp_path / "out", calibration=texts)
    with pytest.raises(ModelError, match="LowRankForCausalLM"):
        last_logits(tmp_path / "out", "native", "fp32")
