"""A second prompt that begins like the first: with and without a prefix cache. `python tools/prefix.py`

Writes docs/bench/prefix.json, which `tools/pareto.py` turns into a table. Both prompts share all but their last 64
tokens. nib holds 1,000 tokens; the 110M shape, with random weights, 2,000. Times are of `prefill` with the logits of
the last token, medians of seven. Logits are compared bit for bit.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from steno.cache.affine import Affine
from steno.core import CacheSpec, Model
from steno.measure.machine import here
from steno.models import NIB, ModelSpec, load
from steno.reuse import PrefixCache, Remembering

OUT = Path(__file__).resolve().parents[1] / "docs" / "bench" / "prefix.json"
OWN, ROUNDS, MEMORY = 64, 7, 1 << 30
SHAPE = {
    "vocab_size": 32000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 12, "num_key_value_heads": 12, "max_position_embeddings": 2304,
}  # fmt: skip
FORMS: tuple[tuple[str, CacheSpec | None], ...] = (("dense", None), ("affine, 4 bits", Affine()))


def main() -> int:
    argparse.ArgumentParser(description="Measure what a prefix cache saves.").parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        subjects = [("nib", str(NIB), 1000), ("110M", shape(Path(scratch) / "110M"), 2000)]
        rows: list[dict[str, object]] = []
        for name, source, tokens in subjects:
            model = load(ModelSpec(source=source, backend="native", weights="int8"))
            for form, knob in FORMS:
                rows.append({"model": name, "tokens": tokens, "cache": form, **measure(model, knob, tokens)})
    machine = here(threads=model.threads, isa=model.isa)  # type: ignore[attr-defined]
    record = {"on": f"native backend, int8, {machine.threads} threads, {machine.cpu}", "rows": rows}
    OUT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows, indent=1))
    return 0


def shape(folder: Path) -> str:
    """A random model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).to(torch.bfloat16).save_pretrained(folder)  # type: ignore[arg-type]
    return str(folder)


def measure(model: Model, form: CacheSpec | None, tokens: int) -> dict[str, object]:
    """Seconds of a plain prefill, of one that is stored on its way, and of one found in memory and on disk."""
    rng = np.random.default_rng(0)
    shared = rng.integers(1, model.vocab, tokens - OWN).tolist()
    times: dict[str, list[float]] = {"plain": [], "stored": [], "memory": [], "disk": []}
    same = True
    for _ in range(ROUNDS):
        first, second = ([*shared, *rng.integers(1, model.vocab, OWN).tolist()] for _ in range(2))
        with tempfile.TemporaryDirectory() as scratch:
            cache = PrefixCache(MEMORY, folder=Path(scratch), disk_bytes=MEMORY)
            truth = run(model, form, second, times["plain"])
            run(Remembering(model, cache), form, first, times["stored"])
            found = run(Remembering(model, cache), form, second, times["memory"])
            held = cache.held_bytes["memory"]
            cache.close()
            again = PrefixCache(MEMORY, folder=Path(scratch), disk_bytes=MEMORY)
            read = run(Remembering(model, again), form, second, times["disk"])
        same = same and (truth == found).all() and (truth == read).all()
    return {
        **{f"{arm}_s": round(median(t), 4) for arm, t in times.items()},
        "held_bytes": held,
        "same_bits": bool(same),
    }


def run(model: Model, form: CacheSpec | None, ids: list[int], times: list[float]) -> np.ndarray:
    """Logits after a prompt, as bits."""
    session = model.open(1, len(ids) + 1, form)
    start = perf_counter()
    logits = session.prefill([ids], last=True)
    times.append(perf_counter() - start)
    assert logits is not None
    return np.array(logits).view(np.uint32)


if __name__ == "__main__":
    sys.exit(main())
