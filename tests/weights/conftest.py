"""Tiny random models, written once per session and never changed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from weights_tools import CONFIGS, VOCAB


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a tiny model: `model("llama", torch.bfloat16)`."""
    made: dict[tuple[str, torch.dtype], Path] = {}

    def make(name: str, dtype: torch.dtype = torch.float32) -> Path:
        if (name, dtype) not in made:
            folder = tmp_path_factory.mktemp("models") / f"{name}-{str(dtype).removeprefix('torch.')}"
            torch.manual_seed(0)
            net = AutoModelForCausalLM.from_config(CONFIGS[name]()).to(dtype)
            with torch.no_grad():
                for key, value in net.named_parameters():
                    if key.endswith("bias"):
                        value.normal_()
            net.save_pretrained(folder)
            (folder / "tokenizer.json").write_text(json.dumps({"model": {}}))
            made[name, dtype] = folder
        return made[name, dtype]

    return make


@pytest.fixture(scope="session")
def texts() -> list[list[int]]:
    """Calibration ids."""
    noise = torch.Generator().manual_seed(7)
    return torch.randint(0, VOCAB, (8, 48), generator=noise).tolist()
