"""A Llama's tensors as a GGUF file, so that llama.cpp computes the same function as the Hugging Face folder.

llama.cpp rotates neighbouring pairs of a head where Hugging Face rotates halves: rows of the query and key projections
are reordered, which changes no score. Norms stay float32. The tokenizer is a made-up one of the right size: only ids
are raced.
"""

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from .shapes import CONTEXT, NORM_EPS, THETA, Shape

Floats = npt.NDArray[np.float32]

TYPES = gguf.GGMLQuantizationType
KINDS = {
    "f32": (TYPES.F32, TYPES.F32, gguf.LlamaFileType.ALL_F32),
    "bf16": (TYPES.BF16, TYPES.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (TYPES.Q8_0, TYPES.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (TYPES.Q4_0, TYPES.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
    "q4_0+q8_0": (TYPES.Q4_0, TYPES.Q8_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
"""Types of the layers' matrices and of the embedding, which is the head as well."""

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write(path: Path, shape: Shape, tensors: Mapping[str, Floats], kind: str) -> None:
    """Write `tensors`, named as in the Hugging Face folder, with matrices of type `kind`."""
    body, head, file_type = KINDS[kind]
    out = gguf.GGUFWriter(path, "llama")
    _header(out, shape, file_type)
    _vocabulary(out, shape.vocab)
    for name, tensor in tensors.items():
        values = np.ascontiguousarray(tensor, np.float32)
        if name.endswith("q_proj.weight"):
            values = paired(values, shape.heads)
        elif name.endswith("k_proj.weight"):
            values = paired(values, shape.kv)
        quantised = head if name == "model.embed_tokens.weight" else body
        if values.ndim == 1 or quantised is TYPES.F32:
            out.add_tensor(renamed(name), values)
        else:
            out.add_tensor(renamed(name), gguf.quants.quantize(values, quantised), raw_dtype=quantised)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def renamed(name: str) -> str:
    """The GGUF name of a Hugging Face tensor.

    >>> renamed("model.layers.3.mlp.up_proj.weight")
    'blk.3.ffn_up.weight'
    """
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def paired(weight: Floats, heads: int) -> Floats:
    """Rows of a projection [heads * D, M] reordered within each head: halves side by side become pairs."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))


def _header(out: gguf.GGUFWriter, shape: Shape, file_type: gguf.LlamaFileType) -> None:
    out.add_name("random")
    out.add_context_length(CONTEXT)
    out.add_embedding_length(shape.hidden)
    out.add_block_count(shape.layers)
    out.add_feed_forward_length(shape.inner)
    out.add_head_count(shape.heads)
    out.add_head_count_kv(shape.kv)
    out.add_key_length(shape.head_dim)
    out.add_value_length(shape.head_dim)
    out.add_rope_dimension_count(shape.head_dim)
    out.add_rope_freq_base(THETA)
    out.add_layer_norm_rms_eps(NORM_EPS)
    out.add_vocab_size(shape.vocab)
    out.add_file_type(file_type)


def _vocabulary(out: gguf.GGUFWriter, size: int) -> None:
    kinds = gguf.TokenType
    first = 3 + 256
    out.add_tokenizer_model("llama")
    out.add_tokenizer_pre("default")
    out.add_token_list(
        ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *(f"t{i}" for i in range(first, size))]
    )
    out.add_token_scores([0.0] * size)
    out.add_token_types(
        [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *([kinds.BYTE] * 256), *([kinds.NORMAL] * (size - first))]
    )
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_unk_token_id(0)
