"""Tiny random models of every family the hf backend is tested on, saved to a folder.

Weights are wide (initializer_range 0.15) so that logits differ from token to token and a wrong mask shows.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import transformers as hf
from transformers import PreTrainedModel

VOCAB = 96
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "initializer_range": 0.15,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None, "tie_word_embeddings": False,
}  # fmt: skip


def sizes(**other: object) -> dict[str, object]:
    return {**SIZES, **other}


def _gpt2() -> PreTrainedModel:
    shape = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256}
    return hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=VOCAB, initializer_range=0.15, bos_token_id=1, eos_token_id=2, **shape)
    )


def _gptj() -> PreTrainedModel:
    shape = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256, "rotary_dim": 4}
    return hf.GPTJForCausalLM(
        hf.GPTJConfig(vocab_size=VOCAB, initializer_range=0.15, bos_token_id=1, eos_token_id=2, **shape)
    )


def _opt() -> PreTrainedModel:
    shape = {
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 16,
    }
    return hf.OPTForCausalLM(
        hf.OPTConfig(vocab_size=VOCAB, max_position_embeddings=256, init_std=0.15, dropout=0.0, **shape)
    )


def _gemma2() -> PreTrainedModel:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    caps = {"attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0, "query_pre_attn_scalar": 8}
    return hf.Gemma2ForCausalLM(hf.Gemma2Config(**sizes(sliding_window=6, layer_types=kinds, **caps)))


def _gemma3() -> PreTrainedModel:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    return hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(**sizes(sliding_window=6, layer_types=kinds, query_pre_attn_scalar=8))
    )


def _gpt_oss() -> PreTrainedModel:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    return hf.GptOssForCausalLM(hf.GptOssConfig(**sizes(sliding_window=6, layer_types=kinds, **experts)))


def _llama4() -> PreTrainedModel:
    experts = {
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 1,
        "intermediate_size_mlp": 64,
    }
    return hf.Llama4ForCausalLM(hf.Llama4TextConfig(**sizes(attention_chunk_size=8, num_hidden_layers=4, **experts)))


def _qwen3_next() -> PreTrainedModel:
    linear = {
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    }
    experts = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    }
    kinds = ["linear_attention", "full_attention", "linear_attention"]
    return hf.Qwen3NextForCausalLM(hf.Qwen3NextConfig(**sizes(layer_types=kinds, **linear, **experts)))


def _mamba() -> PreTrainedModel:
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "state_size": 4, "bos_token_id": 1, "eos_token_id": 2}
    return hf.MambaForCausalLM(hf.MambaConfig(vocab_size=VOCAB, initializer_range=0.15, **shape))


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**sizes())),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**sizes())),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**sizes(sliding_window=6))),
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**sizes(num_local_experts=4, num_experts_per_tok=2))),
    "gpt2": _gpt2,
    "opt": _opt,
    "gpt_oss": _gpt_oss,
    "gptj": _gptj,
    "llama4": _llama4,
    "mamba": _mamba,
    "qwen3_next": _qwen3_next,
}
"""Builders by name. GPT-J keeps to no attention interface, so it runs through explicit masks."""

RECURRENT = ("mamba", "qwen3_next")
"""The families with recurrent state; Qwen3-Next has attention layers as well."""


def make(family: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Save a random model of `family` to `folder`, which is made; the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FAMILIES[family]()
        for name, weight in model.named_parameters():
            if name.endswith("bias") or "norm" in name or "sinks" in name:
                # Trained norms and biases are not ones and zeros, and tests should notice where they are lost.
                weight.data += 0.1 * torch.randn_like(weight)
    model.eval().to(dtype).save_pretrained(folder)
    return folder
