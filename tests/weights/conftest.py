"""Tiny random models, written once per session and never changed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen3Config,
)

VOCAB = 96
SIZE = {"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SIZE, "intermediate_size": 128, "num_key_value_heads": 2, "max_position_embeddings": 64}

CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**LLAMA, tie_word_embeddings=False),
    "llama-tied": lambda: LlamaConfig(**LLAMA, tie_word_embeddings=True),
    "llama-odd": lambda: LlamaConfig(**{**LLAMA, "intermediate_size": 96}, tie_word_embeddings=False),
    "llama-bias": lambda: LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True),
    "qwen3": lambda: Qwen3Config(**LLAMA, head_dim=16, tie_word_embeddings=False),
    "qwen3-tied": lambda: Qwen3Config(**LLAMA, head_dim=16, tie_word_embeddings=True),
    "gemma2": lambda: Gemma2Config(**LLAMA, head_dim=16, sliding_window=16),
    "phi3": lambda: Phi3Config(**LLAMA, pad_token_id=0, tie_word_embeddings=False),
    "opt": lambda: OPTConfig(**SIZE, ffn_dim=128, word_embed_proj_dim=64, max_position_embeddings=64),
    "mixtral": lambda: MixtralConfig(**LLAMA, num_local_experts=4, tie_word_embeddings=False),
    "gpt2": lambda: GPT2Config(n_embd=64, n_layer=1, n_head=4, n_positions=64, vocab_size=VOCAB),
}


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


def ids() -> torch.Tensor:
    """A prompt [1, T]."""
    return torch.arange(12)[None] * 7 % VOCAB
