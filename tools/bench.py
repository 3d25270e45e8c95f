"""`make bench`: steno's engine beside transformers on the same random weights, prompts and token counts.

    python tools/bench.py [--shapes 15M,110M] [--tokens 48] [--rounds 5] [--json FILE]

Arms are interleaved and the figure is the median of the rounds. Per shape and arm: milliseconds per decoded token, the
ratio to transformers, the ratio to the time numpy takes to read as many bytes from memory with all cores (below 1 where
weights stay in the caches), the cost of a step of 8 nodes against one of 1, and prefill tokens per second. Weights are
random: speed does not depend on them, and nothing has to be fetched.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np

SHAPES = {
    "15M": {"hidden_size": 288, "layers": 6, "heads": 6, "kv": 2, "head_dim": 48, "inner": 2048, "vocab": 8192},
    "110M": {"hidden_size": 768, "layers": 12, "heads": 12, "kv": 4, "head_dim": 64, "inner": 2048, "vocab": 32000},
    "500M": {"hidden_size": 1280, "layers": 24, "heads": 20, "kv": 5, "head_dim": 64, "inner": 3840, "vocab": 32000},
}
PROMPT = 128


@dataclass
class Line:
    """One arm on one shape; None where it does not apply."""

    shape: str
    arm: str
    weight_bytes: int
    ms_per_token: float
    over_transformers: float | None
    over_read_time: float
    t8_over_t1: float | None
    prefill_per_s: float


def main() -> int:
    parser = argparse.ArgumentParser(description="Race the engine against its peers.")
    parser.add_argument("--shapes", default="15M,110M", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--tokens", type=int, default=48, help="decoded tokens per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the lines to this file")
    args = parser.parse_args()
    unknown = [s for s in args.shapes.split(",") if s not in SHAPES]
    if unknown:
        print(f"error: there is no shape {unknown[0]}; the shapes are {', '.join(SHAPES)}", file=sys.stderr)
        return 2
    bandwidth = read_bandwidth()
    print(f"memory bandwidth, read, measured now: {bandwidth / 1e9:.1f} GB/s\n")
    print("| shape | arm | ms/token | x transformers | x read time | t(8)/t(1) | prefill tokens/s |")
    print("|---|---|---|---|---|---|---|")
    lines: list[Line] = []
    for shape in args.shapes.split(","):
        for line in compare(shape, args.tokens, args.rounds, bandwidth):
            lines.append(line)
            ratio = "1" if line.over_transformers is None else f"{line.over_transformers:.1f}"
            wide = "-" if line.t8_over_t1 is None else f"{line.t8_over_t1:.2f}"
            print(
                f"| {line.shape} | {line.arm} | {line.ms_per_token:.3f} | {ratio} | {line.over_read_time:.2f} | {wide} "
                f"| {line.prefill_per_s:,.0f} |",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps([asdict(line) for line in lines], indent=1) + "\n")
    return 0


def read_bandwidth() -> float:
    """Bytes per second of reading memory far beyond the caches with all usable cores, best of seven."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parts = [np.ones(1 << 26, np.float32) for _ in range(cores)]
    laps = []
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(7):
            start = time.perf_counter()
            list(pool.map(np.max, parts))
            laps.append(time.perf_counter() - start)
    return sum(part.nbytes for part in parts) / min(laps)


def compare(shape: str, tokens: int, rounds: int, bandwidth: float) -> list[Line]:
    """All arms on one shape."""
    from steno.core import Nodes
    from steno.measure.peers import transformers_generate
    from steno.models.native import load

    with tempfile.TemporaryDirectory() as scratch:
        folder = write_model(Path(scratch), shape)
        peer = transformers_generate(folder, dtype="float32", ignore_eos=True)
        engines = {f"steno {form}": load(folder, weights=form) for form in ("int8", "fp32")}
    prompt = np.random.default_rng(0).integers(0, SHAPES[shape]["vocab"], PROMPT + 1).tolist()
    sessions = {name: model.open(1, PROMPT + tokens + 64) for name, model in engines.items()}
    decode: dict[str, list[float]] = {name: [] for name in ["transformers", *engines]}
    prefill: dict[str, list[float]] = {name: [] for name in decode}
    wide: dict[str, list[float]] = {name: [] for name in engines}
    chain = np.arange(-1, 7, dtype=np.int32)[None]
    for lap in range(rounds + 1):
        for name, session in sessions.items():
            session.crop([0])
            start = time.perf_counter()
            session.prefill([prompt[:-1]])
            filled = time.perf_counter()
            token = np.array([[prompt[-1]]], np.int32)
            root = np.array([[-1]], np.int32)
            for _ in range(tokens):
                token = session.forward(Nodes(tokens=token, parents=root)).argmax
                session.commit([[0]])
            done = time.perf_counter()
            eight = np.zeros((1, 8), np.int32)
            for _ in range(8):
                _ = session.forward(Nodes(tokens=eight, parents=chain)).argmax
            end = time.perf_counter()
            if lap:
                prefill[name].append(PROMPT / (filled - start))
                decode[name].append((done - filled) / tokens)
                wide[name].append((end - done) / 8)
        timing = peer.run(prompt, tokens)
        if lap:
            prefill["transformers"].append(len(prompt) / timing.prefill_s)
            decode["transformers"].append(timing.decode_s / timing.decoded)
    base = median(decode["transformers"])
    count = num_parameters(shape)
    sizes = {"transformers": 4 * count} | {name: model.weight_bytes() for name, model in engines.items()}
    return [
        Line(
            shape=shape,
            arm=name,
            weight_bytes=sizes[name],
            ms_per_token=1e3 * median(laps),
            over_transformers=None if name == "transformers" else base / median(laps),
            over_read_time=median(laps) * bandwidth / sizes[name],
            t8_over_t1=median(wide[name]) / median(laps) if name in wide else None,
            prefill_per_s=median(prefill[name]),
        )
        for name, laps in decode.items()
    ]


def write_model(folder: Path, shape: str) -> Path:
    """A random Llama of the shape."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    s = SHAPES[shape]
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=s["hidden_size"],
        num_hidden_layers=s["layers"],
        num_attention_heads=s["heads"],
        num_key_value_heads=s["kv"],
        head_dim=s["head_dim"],
        intermediate_size=s["inner"],
        vocab_size=s["vocab"],
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def num_parameters(shape: str) -> int:
    """Parameters of a shape, the tied head counted once."""
    s = SHAPES[shape]
    width, size = s["hidden_size"], s["head_dim"]
    attention = width * size * (2 * s["heads"] + 2 * s["kv"])
    return s["vocab"] * width + s["layers"] * (attention + 3 * width * s["inner"] + 2 * width) + width


if __name__ == "__main__":
    sys.exit(main())
