"""What a Llama-family config says of the network: sizes, windows, rotary frequencies. Refuses what the engine lacks."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any

import numpy as np

from steno.core.errors import ModelError

from .checkpoint import Checkpoint

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the config says of the network. `windows[l]` is 0 where layer l sees everything."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocab: int
    context: int
    norm_eps: float
    tied: bool
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    qk_norm: bool
    windows: tuple[int, ...]
    frequency: tuple[float, ...]


def read_shape(checkpoint: Checkpoint) -> Shape:
    """The network a config describes. Raises ModelError where the engine cannot run it."""
    config, file = checkpoint.config, checkpoint.path / "config.json"
    names = config.get("architectures") or ["(none named)"]
    architecture = str(names[0]) if isinstance(names, list) else str(names)
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"{file}: the native backend cannot run {architecture}; it runs {', '.join(ARCHITECTURES)}. "
            f"Use --backend hf."
        )

    def refuse(key: str, value: object, why: str) -> ModelError:
        return ModelError(f"{file}: {key} is {value!r}: {why}. Use --backend hf.")

    def count(key: str, default: object = None) -> int:
        value = config.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ModelError(f"{file}: {key} is {value!r}, expected a positive whole number. Fetch the model again.")
        return value

    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise refuse("hidden_act", config["hidden_act"], "the native backend has silu only")
    width, layers, heads = count("hidden_size"), count("num_hidden_layers"), count("num_attention_heads")
    kv_heads, head_dim = count("num_key_value_heads", heads), count("head_dim", max(width // heads, 1))
    if heads % kv_heads:
        raise refuse("num_key_value_heads", kv_heads, f"it does not divide the {heads} query heads")
    if head_dim % 2 or head_dim > 1024:
        raise refuse("head_dim", head_dim, "the native backend has even head widths up to 1024")
    bias = bool(config.get("attention_bias", False))
    qwen2 = architecture == "Qwen2ForCausalLM"
    return Shape(
        width=width, layers=layers, heads=heads, kv_heads=kv_heads, head_dim=head_dim, inner=count("intermediate_size"),
        vocab=count("vocab_size"), context=count("max_position_embeddings", 2048),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        tied=bool(config.get("tie_word_embeddings", False)), qkv_bias=qwen2 or bias, out_bias=bias and not qwen2,
        mlp_bias=bool(config.get("mlp_bias", False)), qk_norm=architecture == "Qwen3ForCausalLM",
        windows=_windows(config, architecture, layers), frequency=_frequency(config, head_dim, refuse),
    )  # fmt: skip


def _windows(config: dict[str, Any], architecture: str, layers: int) -> tuple[int, ...]:
    """Sliding window per layer, 0 for none, by the rules of each architecture's config class."""
    window = config.get("sliding_window")
    if not isinstance(window, int) or architecture == "LlamaForCausalLM":
        return (0,) * layers
    if architecture == "MistralForCausalLM":
        return (window,) * layers
    if not config.get("use_sliding_window", False):
        return (0,) * layers
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == layers:
        return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    first = int(config.get("max_window_layers", 28))
    return tuple(window if layer >= first else 0 for layer in range(layers))


def _frequency(
    config: dict[str, Any], head_dim: int, refuse: Callable[[str, object, str], ModelError]
) -> tuple[float, ...]:
    """Rotary frequency [head_dim / 2] as float32 values.

    The powers are taken in decimal arithmetic, whose results the language fixes, and everything after is single IEEE
    operations in float32: the table is the same on every machine, which a maths library's pow is not.
    """
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = found if isinstance(found, dict) else {}
    kind = str(rope.get("rope_type", rope.get("type", "default")))
    if kind not in ("default", "linear", "llama3"):
        raise refuse("rope_type", kind, "the native backend has default, linear and llama3 rotary positions")
    for source in (config, rope):
        if source.get("partial_rotary_factor", 1.0) not in (None, 1.0):
            raise refuse(
                "partial_rotary_factor", source["partial_rotary_factor"], "the native backend rotates whole heads"
            )
    theta = float(rope.get("rope_theta", config.get("rope_theta", 10000.0)))
    with localcontext(prec=40):
        log = Decimal(theta).ln()
        powers = [
            float((Decimal(float(np.float32(2 * j) / np.float32(head_dim))) * log).exp()) for j in range(head_dim // 2)
        ]
    frequency = np.float32(1.0) / np.array(powers, np.float32)
    if kind == "linear":
        frequency = frequency / np.float32(rope["factor"])
    elif kind == "llama3":
        factor, low, high = (np.float32(rope[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
        old = np.float32(rope["original_max_position_embeddings"])
        waves = np.float32(2 * math.pi) / frequency
        blend = (old / waves - low) / (high - low)
        mixed = (np.float32(1) - blend) * frequency / factor + blend * frequency
        frequency = np.where(waves > old / low, frequency / factor, np.where(waves < old / high, frequency, mixed))
    return tuple(float(f) for f in frequency)
