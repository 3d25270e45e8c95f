"""Shapes that are raced, and the bytes a token has to read in each weight form."""

from dataclasses import asdict, dataclass

NORM_EPS = 1e-5
THETA = 10000.0
CONTEXT = 8192


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Llama with a tied head. `kv` are key heads, `inner` is the width of the feed-forward layer."""

    hidden: int
    layers: int
    heads: int
    kv: int
    head_dim: int
    inner: int
    vocab: int

    @property
    def parameters(self) -> int:
        """All parameters, the tied head counted once."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv)
        layer = attention + 3 * self.hidden * self.inner + 2 * self.hidden
        return self.vocab * self.hidden + self.layers * layer + self.hidden

    def kv_bytes(self, tokens: int, element_bytes: float = 4.0) -> int:
        """Keys and values of `tokens` tokens."""
        return int(2 * self.layers * self.kv * self.head_dim * tokens * element_bytes)

    def config(self) -> dict[str, object]:
        """The Hugging Face config."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv,
            "head_dim": self.head_dim,
            "intermediate_size": self.inner,
            "vocab_size": self.vocab,
            "max_position_embeddings": CONTEXT,
            "rms_norm_eps": NORM_EPS,
            "rope_theta": THETA,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "dtype": "bfloat16",
        }

    def as_plain(self) -> dict[str, int]:
        return asdict(self)


SHAPES = {
    "15M": Shape(hidden=288, layers=6, heads=6, kv=2, head_dim=48, inner=2048, vocab=8192),
    "110M": Shape(hidden=768, layers=12, heads=12, kv=4, head_dim=64, inner=2048, vocab=32000),
    "500M": Shape(hidden=1280, layers=24, heads=20, kv=5, head_dim=64, inner=3840, vocab=32000),
    "1.1B": Shape(hidden=2048, layers=22, heads=32, kv=4, head_dim=64, inner=5632, vocab=32000),
}

LIKE = {"fp32": "f32", "bf16": "bf16", "int8": "q8_0", "int4": "q4_0"}
"""The GGUF type that stores as many bits per weight as a form of the engine."""


def like(form: str) -> str | None:
    """The GGUF type to race a weight form against ("int4g128" against q4_0), None where there is none."""
    return next((kind for name, kind in LIKE.items() if form.startswith(name)), None)
