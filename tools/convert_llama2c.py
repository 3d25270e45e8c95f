"""Convert a llama2.c checkpoint and its tokenizer to a Hugging Face folder.

    python tools/convert_llama2c.py stories260K.bin tok512.bin OUT

The checkpoint is the legacy ("version 0") layout: seven int32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads,
vocab_size, seq_len; a negative vocab_size says that the head is not shared), then float32 tensors, each stacked over
the layers. llama2.c rotates neighbouring pairs of a head (2i, 2i + 1), transformers rotates (i, i + D/2): the rows of
the query and key projections are reordered, which leaves every score unchanged.

The tokenizer is SentencePiece BPE: per token a score, a length and its bytes. A merge is preferred by the score of
what it makes, so the list of merges, best first, is the vocabulary's splits ordered by score.
"""

import argparse
import json
import struct
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

SPACE = "\u2581"
SPECIAL = ("<unk>", "<s>", "</s>")


def main() -> int:
    parser = argparse.ArgumentParser(description="Convert a llama2.c checkpoint to a Hugging Face folder.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    if args.out.exists():
        print(f"error: {args.out} exists already; name a new folder", file=sys.stderr)
        return 2
    try:
        config, tensors = read_checkpoint(args.checkpoint)
        tokens = read_tokens(args.tokenizer, config["vocab_size"])
    except (OSError, ValueError, struct.error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True)
    write_folder(args.out, config, tensors, tokens)
    print(args.out)
    return 0


def read_checkpoint(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """The transformers config and tensors of a llama2.c file. Raises ValueError where size and header disagree."""
    data = path.read_bytes()
    width, inner, layers, heads, key_heads, vocab, context = struct.unpack_from("<7i", data)
    tied, vocab = vocab > 0, abs(vocab)
    size = width // heads
    numbers = np.frombuffer(data, dtype="<f4", offset=28)
    at = 0

    def take(*shape: int) -> np.ndarray:
        nonlocal at
        count = int(np.prod(shape))
        if at + count > len(numbers):
            raise ValueError(f"{path} holds {len(numbers)} numbers, its header asks for more: it is truncated")
        at += count
        return numbers[at - count : at].reshape(shape).astype(np.float32)

    embed = take(vocab, width)
    norm_attention = take(layers, width)
    query = take(layers, heads * size, width)
    key = take(layers, key_heads * size, width)
    value = take(layers, key_heads * size, width)
    output = take(layers, width, heads * size)
    norm_mlp = take(layers, width)
    gate = take(layers, inner, width)
    down = take(layers, width, inner)
    up = take(layers, inner, width)
    norm = take(width)
    take(context, size)  # cosines and sines, which transformers computes itself
    tensors = {"model.embed_tokens.weight": embed, "model.norm.weight": norm}
    if not tied:
        tensors["lm_head.weight"] = take(vocab, width)
    for i in range(layers):
        name = f"model.layers.{i}."
        tensors |= {
            name + "input_layernorm.weight": norm_attention[i],
            name + "self_attn.q_proj.weight": _halves(query[i], heads),
            name + "self_attn.k_proj.weight": _halves(key[i], key_heads),
            name + "self_attn.v_proj.weight": value[i],
            name + "self_attn.o_proj.weight": output[i],
            name + "post_attention_layernorm.weight": norm_mlp[i],
            name + "mlp.gate_proj.weight": gate[i],
            name + "mlp.down_proj.weight": down[i],
            name + "mlp.up_proj.weight": up[i],
        }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "head_dim": size,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    return config, {k: np.ascontiguousarray(v) for k, v in tensors.items()}


def read_tokens(path: Path, count: int) -> list[tuple[bytes, float]]:
    """(bytes, score) per token of a llama2.c tokenizer file."""
    data = path.read_bytes()
    at = 4
    out: list[tuple[bytes, float]] = []
    for _ in range(count):
        score, length = struct.unpack_from("<fi", data, at)
        at += 8
        out.append((data[at : at + length], score))
        at += length
    if at > len(data):
        raise ValueError(f"{path} ends before its {count} tokens: it is truncated or of another model")
    return out


def make_tokenizer(tokens: list[tuple[bytes, float]]) -> Tokenizer:
    """SentencePiece BPE with byte fallback and a leading space, as a `tokenizers` tokenizer."""
    pieces = [_piece(i, raw) for i, (raw, _) in enumerate(tokens)]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges: list[tuple[float, int, int, str, str]] = []
    for i, (piece, (_, score)) in enumerate(zip(pieces, tokens, strict=True)):
        if i < len(SPECIAL) or piece.startswith("<0x"):
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocab and right in vocab:
                merges.append((-score, vocab[left], vocab[right], left, right))
    merges.sort()
    out = Tokenizer(
        models.BPE(vocab, [(left, right) for *_, left, right in merges], unk_token=SPECIAL[0], byte_fallback=True)
    )
    out.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    out.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    out.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL])
    return out


def write_folder(out: Path, config: dict, tensors: dict[str, np.ndarray], tokens: list[tuple[bytes, float]]) -> None:
    """Write config, weights and tokenizer."""
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(tensors, str(out / "model.safetensors"), metadata={"format": "pt"})
    make_tokenizer(tokens).save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[1],
        "eos_token": SPECIAL[2],
        "unk_token": SPECIAL[0],
        "model_max_length": config["max_position_embeddings"],
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")


def _halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from neighbouring pairs to halves."""
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def _piece(i: int, raw: bytes) -> str:
    text = raw.decode("utf-8")
    if i < len(SPECIAL):
        return SPECIAL[i]
    return text if text.startswith("<0x") and text.endswith(">") else text.replace(" ", SPACE)


if __name__ == "__main__":
    sys.exit(main())
