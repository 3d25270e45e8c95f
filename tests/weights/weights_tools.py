"""Configurations of the tiny models, and a prompt."""

from collections.abc import Callable

import torch
from transformers import (
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


def ids() -> torch.Tensor:
    """A prompt [1, T]."""
    return torch.arange(12)[None] * 7 % VOCAB
