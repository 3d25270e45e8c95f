"""The model that is trained: a stock transformers LlamaForCausalLM, and its loss on a batch of tokens."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from steno.train.recipe import Shape

Loss = Callable[[Tensor], Tensor]


def build(shape: Shape, vocab: int, separator: int, seed: int) -> LlamaForCausalLM:
    """A fresh model. Projections into the residual stream start smaller, by the square root of their number."""
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=shape.width,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.context,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=separator,
        eos_token_id=separator,
        pad_token_id=None,
        use_cache=False,
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(1 / math.sqrt(2 * shape.layers))
    return model


def logits(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """[B, T] -> [B, T, V], causal, no cache.

    The layers are called one by one without a mask: LlamaModel.forward looks for packed sequences in the positions,
    which under torch.compile builds a [T, T] mask and loses the fused causal kernel.
    """
    inner = model.model
    hidden = inner.embed_tokens(ids)
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    # Angles in float32, whatever the arithmetic of the rest.
    rotary = inner.rotary_emb(hidden, position_ids=positions)
    if torch.is_autocast_enabled(ids.device.type):
        # Autocast leaves embeddings in float32, and with them the whole residual stream.
        hidden = hidden.to(torch.get_autocast_dtype(ids.device.type))
    for layer in inner.layers:
        hidden = layer(hidden, attention_mask=None, position_embeddings=rotary)
    return model.lm_head(inner.norm(hidden))


def loss(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """Mean cross entropy, in nats per token, of ids [B, T + 1]."""
    found = logits(model, ids[:, :-1]).float()
    return F.cross_entropy(found.flatten(0, 1), ids[:, 1:].flatten())


def num_parameters(model: LlamaForCausalLM) -> int:
    """Parameters, the tied head counted once."""
    return sum(weight.numel() for weight in model.parameters())


def save_master(model: LlamaForCausalLM, folder: Path) -> None:
    """Write the unquantised weights as a stock folder, in bfloat16 shards small enough to move about."""
    copy = build_like(model)
    torch.nn.Module.to(copy, torch.bfloat16)
    copy.load_state_dict({name: weight.detach().to(torch.bfloat16) for name, weight in model.state_dict().items()})
    copy.config.use_cache = True
    copy.save_pretrained(folder, max_shard_size="15MB")


def build_like(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """An empty model of the same configuration."""
    return LlamaForCausalLM(LlamaConfig(**model.config.to_dict()))
