"""An editor session: PIE against recomputation after edits in files of 2k to 8k tokens.

    python tools/editor.py --tokens 2048 --edit insertion      measure one cell of docs/bench/editor.json
    python tools/pareto.py                                     write its table into docs/caches.md

Files are standard-library modules that nib has never seen. The new text is the module as it is. The old one lacks a
stretch of it (insertion), has a stretch of another module too much (deletion), both in the first half; or both by turns
in eight places, the last of them within a hundred tokens of the end (several). After the edit the model scores the 64
tokens that follow, and is compared with itself after a full pass over the new text in the same cache form: KL per
token, same first choice. Beside PIE stand two ways to be wrong: `unturned` reuses keys where they were, `stale` leaves
the old text in the cache.

nib was trained on 1,024 tokens. For longer files its rotary base is raised 40 times (NTK-aware scaling), which costs 4
to 8 % of its loss within the old context and keeps it usable at 8k, where the plain base is lost.
"""

import argparse
import json
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from time import perf_counter
from typing import NamedTuple

import numpy as np

from steno.cache.affine import Affine
from steno.core import CacheSpec, Keeper, Model, Nodes
from steno.measure.machine import here
from steno.models import NIB, ModelSpec, load
from steno.reuse import Piece
from steno.reuse.pie import Edit, Pie, edited
from steno.tokens import hf as tokenizers

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "bench" / "editor.json"
TAIL, STRETCH, PLACES, BASE = 64, 24, 8, 40
FORMS: dict[str, CacheSpec | None] = {
    "dense": None,
    "affine, 8 bits": Affine(key_bits=8, value_bits=8),
    "affine, 4 bits": Affine(),
}
Ids = tuple[int, ...]


class Case(NamedTuple):
    """A text before and after its edits, and what follows."""

    old: Ids
    new: Ids
    edits: list[Edit]
    tail: Ids


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure PIE against recomputation.")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--edit", choices=("insertion", "deletion", "several"), default="insertion")
    parser.add_argument("--files", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = long_nib(Path(scratch) / "nib", args.tokens + 4 * STRETCH * PLACES)
        texts = modules(args.tokens + TAIL + 1, args.files + 1)
        cases = [case(texts[i], texts[-1], args.tokens, args.edit, i) for i in range(args.files)]
        rows = [measure(model, name, form, cases) for name, form in FORMS.items()]
    found = json.loads(OUT.read_text(encoding="utf-8"))["rows"] if OUT.exists() else []
    kept = [row for row in found if (row["tokens"], row["edit"]) != (args.tokens, args.edit)]
    new = [{"tokens": args.tokens, "edit": args.edit, "files": args.files, **row} for row in rows]
    rank = ("insertion", "deletion", "several")
    both = sorted(
        [*kept, *new], key=lambda row: (row["tokens"], rank.index(row["edit"]), list(FORMS).index(row["cache"]))
    )
    machine = here(threads=model.threads, isa=model.isa)  # type: ignore[attr-defined]
    record = {"on": f"nib, native backend, rotary base {BASE} times as large, {machine.cpu}", "rows": both}
    OUT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(new, indent=1))
    return 0


def long_nib(folder: Path, context: int) -> Model:
    """nib with a longer context and a larger rotary base."""
    shutil.copytree(NIB, folder)
    # It records the bits of the model as it was.
    (folder / "steno_golden.json").unlink()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = context
    config["rope_parameters"]["rope_theta"] *= BASE
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return load(ModelSpec(source=str(folder), backend="native"))


def modules(tokens: int, count: int) -> list[Ids]:
    """The first held-out modules that are long enough, as ids."""
    tokenizer = tokenizers.load(NIB)
    manifest = json.loads((ROOT / "docs" / "nib" / "manifest.json").read_text(encoding="utf-8"))
    root = Path(sysconfig.get_paths()["stdlib"])
    out: list[Ids] = []
    for row in manifest["held_out"]:
        path = root / row["name"].removeprefix("stdlib/")
        if row["bucket"] == "stdlib" and path.is_file() and len(out) < count:
            ids = tuple(tokenizer.encode(path.read_text(encoding="utf-8")))
            if len(ids) >= tokens:
                out.append(ids)
    if len(out) < count:
        raise SystemExit(f"only {len(out)} held-out modules have {tokens} tokens, {count} are needed")
    return out


def case(text: Ids, other: Ids, tokens: int, kind: str, seed: int) -> Case:
    """Edits that lead to the first `tokens` of `text`."""
    rng = np.random.default_rng([seed, tokens])
    new = text[:tokens]
    places = [int(rng.integers(tokens // 10, tokens // 2))]
    if kind == "several":
        spread = np.linspace(tokens // 10, tokens - 96, PLACES)
        places = [int(place - rng.integers(0, STRETCH)) for place in spread]
    old: list[int] = []
    edits: list[Edit] = []
    end = 0
    for number, place in enumerate(places):
        old += new[end:place]
        if kind == "insertion" or (kind == "several" and number % 2 == 0):
            edits.append(Edit(len(old), len(old), new[place : place + STRETCH]))
            end = place + STRETCH
        else:
            start = int(rng.integers(0, len(other) - STRETCH))
            edits.append(Edit(len(old), len(old) + STRETCH))
            old += other[start : start + STRETCH]
            end = place
    return Case((*old, *new[end:]), new, edits, text[tokens - 1 : tokens + TAIL])


def measure(model: Model, name: str, form: CacheSpec | None, cases: Sequence[Case]) -> dict[str, object]:
    """One row: PIE, and what it is held against, in one cache form."""
    times: dict[str, list[float]] = {"full": [], "behind": [], "pie": []}
    kls: dict[str, list[float]] = {"pie": [], "unturned": [], "stale": []}
    same: list[bool] = []
    for one in cases:
        capacity = max(len(one.old), len(one.new)) + TAIL + 1
        # The last token of a text is pending.
        old, new = one.old[:-1], one.new[:-1]
        session = opened(model, capacity, form)
        session.prefill([old])
        truth = opened(model, capacity, form)
        start = perf_counter()
        truth.prefill([new])
        times["full"].append(perf_counter() - start)
        if form is None:
            # What an engine with a prefix cache does: all behind the first edit again.
            twin, first = session.fork([0]), one.edits[0].start
            start = perf_counter()
            twin.crop([first])
            twin.prefill([new[first:]])
            times["behind"].append(perf_counter() - start)
        start = perf_counter()
        pieces = edited(session, 0, old, one.edits)
        woven = Pie().weave(model, pieces, capacity=capacity, form=form)
        times["pie"].append(perf_counter() - start)
        laws = scores(truth, one.tail)
        got = scores(woven.session, one.tail)
        kls["pie"] += kl(laws, got)
        same += (laws.argmax(-1) == got.argmax(-1)).tolist()
        kls["unturned"] += kl(laws, scores(unturned(model, pieces, capacity, form), one.tail))
        kls["stale"] += kl(laws, scores(session, one.tail))
    row: dict[str, object] = {"cache": name, **{f"{arm}_s": round(median(t), 4) for arm, t in times.items() if t}}
    row |= {f"kl_{arm}": float(f"{fmean(values):.3g}") for arm, values in kls.items()}
    return {**row, "kl_p99": float(f"{np.quantile(kls['pie'], 0.99):.3g}"), "same": round(100 * fmean(same), 2)}


def opened(model: Model, capacity: int, form: CacheSpec | None) -> Keeper:
    session = model.open(1, capacity, form)
    assert isinstance(session, Keeper)
    return session


def unturned(model: Model, pieces: Sequence[Piece], capacity: int, form: CacheSpec | None) -> Keeper:
    """Known pieces as they are, their keys turned for where they used to be."""
    session = opened(model, capacity, form)
    for piece in pieces:
        if piece.known is None:
            session.prefill([piece.tokens])
        else:
            session.append(0, *piece.known)
    return session


def scores(session: Keeper, tail: Ids) -> np.ndarray:
    """Log-probabilities [TAIL, V] of what follows each token of the tail but the last."""
    chain = np.array([tail[:TAIL]], np.int32)
    out: list[np.ndarray] = []
    start = 0
    while start < TAIL:
        width = min(session.room()[0], TAIL - start)
        parents = np.arange(-1, width - 1, dtype=np.int32)[None]
        out.append(np.array(session.forward(Nodes(tokens=chain[:, start : start + width], parents=parents)).logits[0]))
        session.commit([range(width)])
        start += width
    logits = np.concatenate(out).astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def kl(truth: np.ndarray, got: np.ndarray) -> list[float]:
    return (np.exp(truth) * (truth - got)).sum(-1).tolist()


if __name__ == "__main__":
    sys.exit(main())
