"""Tiny random models of the Llama family in shapes that trip an engine up, and passes over them that end in hashes.

Run as a script it prints the hashes, for comparing instruction sets, which a process chooses once:

    python native_tiny.py digest|written THREADS FOLDER ...
"""

import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from steno.measure._lab import chain, forest

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64, "rope_theta": 500000.0,
}  # fmt: skip

# No width is a multiple of 16, the vocabulary is odd, and head widths and groupings differ.
BASE = {
    "hidden_size": 42, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 100, "vocab_size": 301, "max_position_embeddings": 640, "initializer_range": 0.15,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None, "tie_word_embeddings": False,
}  # fmt: skip

FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("Llama", {}),
    "llama-tied-biased": (
        "Llama",
        {"head_dim": 64, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "llama3-rope": ("Llama", {"head_dim": 48, "rope_parameters": LLAMA3}),
    "linear-rope": (
        "Llama",
        {"head_dim": 16, "rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 5e3}},
    ),
    "multi-head": ("Llama", {"num_key_value_heads": 6}),
    "one-key-head": ("Llama", {"num_key_value_heads": 1, "head_dim": 24}),
    "mistral": ("Mistral", {"head_dim": 16, "sliding_window": 33}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 128}),
}
"""name -> (family, settings)."""


def make(name: str, folder: Path, dtype: str = "float32", **other: object):
    """Save a random model to `folder`, the same every time; returns the transformers model."""
    import torch
    import transformers as hf

    family, settings = FAMILIES[name]
    settings = {**BASE, **settings, **other}
    if family == "Qwen2":  # has no head_dim of its own
        del settings["head_dim"]
        settings["hidden_size"] = 60
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(hf, f"{family}ForCausalLM")(getattr(hf, f"{family}Config")(**settings)).eval()
        for key, weight in model.named_parameters():
            if key.endswith("bias") or "norm" in key:
                weight.data += 0.1 * torch.randn_like(weight)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    # Casting a model also rounds its rotary table, loading it does not.
    return type(model).from_pretrained(folder, dtype=torch.float32).eval()


def ids(count: int, salt: int = 0) -> list[int]:
    return [int(i) for i in np.random.default_rng([7, salt]).integers(0, BASE["vocab_size"], count)]


def decode(session, text: Sequence[int], widths: Callable[[], int]) -> np.ndarray:
    """Logits [T, V] of `text` on a one-row session, in chains as wide as `widths` says."""
    out, at = [], 0
    while at < len(text):
        piece = text[at : at + widths()]
        out.append(np.array(session.forward(forest([chain(piece)])).logits[0]))
        session.commit([list(range(len(piece)))])
        at += len(piece)
    return np.concatenate(out)


def forms(head_dim: int):
    """Every way of keeping sealed tokens, in groups that fill vectors and groups that do not."""
    from steno.cache.affine import Affine
    from steno.cache.half import Half
    from steno.cache.window import Window

    bits = ((8, 8), (4, 3), (3, 2), (2, 4))
    narrow = 1024 if head_dim % 8 else 8
    return [
        *(Affine(key_bits=k, value_bits=v, residual=0, block=32, value_group=1024) for k, v in bits),
        *(Affine(key_bits=k, value_bits=v, group=12, residual=12, block=12, value_group=narrow) for k, v in bits),
        Half(block=24),
        Window(sinks=3, window=20, block=4),
    ]


def digest(folders: Sequence[str], threads: int) -> str:
    """Hash of logits and hidden states over all number forms of some models."""
    from steno.core import Want
    from steno.models import _engine, native
    from steno.models._fill import FORMS

    _engine.insist_on_threads(True)
    total = hashlib.sha256()
    for folder in folders:
        for weights in FORMS:
            model = native.load(folder, weights=weights, threads=threads)
            session = model.open(2, 320)
            session.prefill([ids(270), ids(21, 1)])
            tree = (ids(9, 2), [-1, 0, 0, 1, 2, 2, 4, -1, 7])
            for _ in range(3):
                step = session.forward(forest([tree, chain(ids(3, 3))]), Want(hidden=(0, 2)))
                for array in (step.logits[0], step.logits[1, :3], step.hidden(2)[0], *(a[0] for a in step.top(7))):
                    total.update(np.ascontiguousarray(array).tobytes())
                session.commit([[0, 2, 4], [0]])
            for form in forms(model.shape.head_dim) if weights == "int8" else ():
                session = model.open(2, 320, form)
                session.prefill([ids(270), ids(81, 1)])
                for turn in range(12):
                    step = session.forward(forest([chain(ids(n, turn)[:9]) for n in session.room()]))
                    for row, logits in enumerate(step.logits):
                        total.update(np.ascontiguousarray(logits[: min(session.room()[row], 9)]).tobytes())
                    session.commit([list(range(min(n, 3))) for n in session.room()])
    return total.hexdigest()


def written(folders: Sequence[str], threads: int) -> str:
    """Hash of what every drafter and acceptor of the index writes with some models: ids, and logits at each of them."""
    from steno.core import Plan, make_knob
    from steno.core.index import scan
    from steno.decode.base import Request
    from steno.decode.loop import generate
    from steno.measure._lab import FLAT
    from steno.measure._watch import Watched
    from steno.models import _engine, native

    _engine.insist_on_threads(True)
    names = scan()
    # Drafters with trained parts need an adapter; what they draft is a function of the same states.
    drafts = [n for n, entry in names.items() if n.startswith("decode.draft.") and "adapter" not in entry["fields"]]
    drafters = [[], *([name] for name in drafts)]
    acceptors = [name for name in names if name.startswith("decode.accept.")]
    # Text that repeats itself, so that drafts are accepted.
    requests = [
        Request(number=i, prompt=tuple(ids(5 + i, i) * 4), max_tokens=12, seed=i, ignore_eos=True) for i in range(3)
    ]
    total = hashlib.sha256()
    for folder in folders[:2]:
        for weights in ("fp32", "int4"):
            model = native.load(folder, weights=weights, threads=threads)
            for drafter in drafters:
                for acceptor in acceptors:
                    heat = [] if acceptor.endswith("greedy") else [("decode.shape.temperature", {"temperature": 0.7})]
                    plan = Plan(tuple(make_knob(*knob) for knob in [*((n, {}) for n in (*drafter, acceptor)), *heat]))
                    watched = Watched(model)
                    done = generate(watched, requests, plan, batch=2, costs=FLAT, capacity=80)
                    assert len(done) == len(requests)
                    for completion in done:
                        total.update(np.array(completion.tokens, "<i4").tobytes())
                    for past in sorted(watched.seen):
                        total.update(np.array(past, "<i4").tobytes() + watched.seen[past].tobytes())
    return total.hexdigest()


if __name__ == "__main__":
    print({"digest": digest, "written": written}[sys.argv[1]](sys.argv[3:], int(sys.argv[2])))
