"""Tiny models whose every bit follows from integers, and the golden vectors of all models that this repository holds.

Run as a script it records the vectors:

    python tests/models/golden_models.py

and with folders as arguments it prints theirs as JSON instead. It refuses to replace a vector while `ARITHMETIC` keeps
its name: bits that moved under an old name would make files written before unreadable without saying so.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from native_tiny import BASE, FAMILIES
from safetensors.numpy import save_file

from steno.models import NIB, golden, native
from steno.models._fill import FORMS

STORE = Path(__file__).with_name("golden.json")
PLANTED = ("llama", "llama-tied-biased", "llama3-rope", "mistral", "qwen2-window", "qwen3")


def plant(name: str, folder: Path) -> Path:
    """Write one of `native_tiny.FAMILIES` with weights made from integers: no random generator, no maths library."""
    family, settings = FAMILIES[name]
    config = {**BASE, **settings, "architectures": [f"{family}ForCausalLM"]}
    if family == "Qwen2":
        config["head_dim"] = 10
        config["hidden_size"] = 60
    width, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    sizes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], width)}
    for layer in range(config["num_hidden_layers"]):
        base = f"model.layers.{layer}."
        linears = {
            "self_attn.q_proj": (q, width), "self_attn.k_proj": (kv, width), "self_attn.v_proj": (kv, width),
            "self_attn.o_proj": (width, q), "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
        }  # fmt: skip
        for part, size in linears.items():
            sizes[f"{base}{part}.weight"] = size
            attention = part.startswith("self_attn")
            if config.get("attention_bias" if attention else "mlp_bias") or (
                family == "Qwen2" and attention and "o_proj" not in part
            ):
                sizes[f"{base}{part}.bias"] = size[:1]
        sizes[f"{base}input_layernorm.weight"] = sizes[f"{base}post_attention_layernorm.weight"] = (width,)
        if family == "Qwen3":
            sizes[f"{base}self_attn.q_norm.weight"] = sizes[f"{base}self_attn.k_norm.weight"] = (head,)
    sizes["model.norm.weight"] = (width,)
    if not config["tie_word_embeddings"]:
        sizes["lm_head.weight"] = (config["vocab_size"], width)
    tensors = {
        key: _values(size, salt, around=1 if "norm" in key else 0)
        for salt, (key, size) in enumerate(sorted(sizes.items()))
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors")
    return folder


def _values(size: tuple[int, ...], salt: int, around: int) -> np.ndarray:
    """Multiples of 2^-25 within 1/4 of `around`, each exact in float32."""
    x = np.arange(int(np.prod(size)), dtype=np.uint64) + np.uint64(salt << 32)
    for by in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        x = (x ^ (x >> np.uint64(33))) * np.uint64(by)
    whole = (x >> np.uint64(40)).astype(np.int64) - 2**23
    return (around + whole.astype(np.float32) / np.float32(2**25)).reshape(size).astype(np.float32)


def vectors(folder: Path, threads: int = 1) -> dict[str, str]:
    """weights form -> golden vector of one model."""
    return {form: golden.golden_vector(native.load(folder, weights=form, threads=threads)) for form in sorted(FORMS)}


def merge(old: dict[str, dict[str, str]], name: str, found: dict[str, str]) -> dict[str, dict[str, str]]:
    """`old` with the vectors found under the present arithmetic. Raises SystemExit where one of them moved."""
    kept = old.get(native.ARITHMETIC, {})
    moved = sorted(form for form, vector in found.items() if kept.get(form, vector) != vector)
    if moved:
        raise SystemExit(
            f"{name}: the bits of {', '.join(moved)} moved, and the arithmetic is still called {native.ARITHMETIC!r}. "
            f"Undo what moved them, or give ARITHMETIC in models/native.py a new name and run this again."
        )
    return {native.ARITHMETIC: {**kept, **found}}


def record() -> None:
    """Bring both files up to date with this tree."""
    store: dict[str, dict[str, dict[str, str]]] = json.loads(STORE.read_text()) if STORE.exists() else {}
    file = NIB / golden.FILE
    nib = merge(json.loads(file.read_text()) if file.exists() else {}, "nib", vectors(NIB))
    with tempfile.TemporaryDirectory() as root:
        for name in PLANTED:
            store[name] = merge(store.get(name, {}), name, vectors(plant(name, Path(root, name))))
    file.write_text(json.dumps(nib, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    STORE.write_text(json.dumps(store, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"recorded under {native.ARITHMETIC!r}", file=sys.stderr)


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps([vectors(Path(folder)) for folder in sys.argv[1:]]))
    else:
        record()
