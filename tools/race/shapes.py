"""Shapes that are raced, and the bytes a token has to read in each weight form."""

import re
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

    def weight_bytes(self, form: str) -> int:
        """Bytes of all parameters in a form: the least that a token has to read."""
        body, head = bits(form)
        matrix = self.vocab * self.hidden
        return int(((self.parameters - matrix) * body + matrix * head) / 8)

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

LIKE = {"fp32": "f32", "bf16": "bf16", "int8": "q8_0", "int4": "q4_0+q8_0"}
"""The GGUF types that store as many bits per weight as a form of the engine. steno's int4 keeps the head at 8 bits (as
llama.cpp's own quantiser keeps it above 4), so it meets a file that does the same; pure q4_0 is raced beside it."""

BITS = {
    "fp32": (32.0, 32.0), "f32": (32.0, 32.0), "float32": (32.0, 32.0),
    "bf16": (16.0, 16.0), "bfloat16": (16.0, 16.0),
    "int8": (8.0, 8.0), "q8_0": (8.5, 8.5),
    "int4": (4.5, 8.0), "int4-64": (4.25, 8.0), "int4-128": (4.125, 8.0),
    "q4_0": (4.5, 4.5), "q4_0+q8_0": (4.5, 8.5),
}  # fmt: skip
"""Bits per weight, of the layers and of the head; scales count where there is one for a group of weights."""


def like(form: str) -> str | None:
    """The GGUF type to race a weight form against, None where there is none.

    >>> like("int4-128"), like("int2")
    ('q4_0+q8_0', None)
    """
    return LIKE.get(form.partition("-")[0])


def bits(form: str) -> tuple[float, float]:
    """Bits per weight of layers and head; of a form that is not listed, what its name says.

    >>> bits("int4"), bits("int3-32")
    ((4.5, 8.0), (3.0, 3.0))
    """
    if form in BITS:
        return BITS[form]
    number = re.search(r"\d+", form)
    known = float(number[0]) if number else 32.0
    return known, known
