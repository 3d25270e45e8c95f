"""Measure every method on nib and write `docs/evidence/`: `python tools/evidence.py [--float FOLDER] [NAME ...]`.

Drafters, acceptors and searches run on the bundled prompts; PG-TD on `tools/tasks.jsonl`, beginnings
of small functions with their unit tests. Cache forms run on text near the model's context: the heads of
standard-library modules that nib has never seen. Weights methods need a model in floats: `--float` names one, else
nib's own weights are written out as floats (which flatters 8 bits: they lie on an 8-bit grid already).
"""

import argparse
import json
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROMPTS, CHARACTERS = 8, 2600
TASK_FILE = "tools/tasks.jsonl"
TASKS = {"decode.search.pgtd": f'reward={{ name = "decode.score.tests", file = "{TASK_FILE}" }}'}
"""Methods that are measured on tasks, and how they are set there."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure every method and write docs/evidence.")
    parser.add_argument("--float", type=Path, dest="source", help="model folder in floats, for weights methods")
    parser.add_argument("names", nargs="*", help="methods; all by default")
    args = parser.parse_args()
    from steno.core import methods

    names = args.names or [name for name, entry in methods().items() if not entry["card"].get("task")]
    with tempfile.TemporaryDirectory() as scratch:
        long = Path(scratch) / "held-out-modules.jsonl"
        long.write_text("\n".join(json.dumps({"name": n, "prompt": text}) for n, text in modules()))
        for name in names:
            words = ["bench", name, "--force", "--out", str(ROOT / "docs" / "evidence" / f"{name}.json")]
            if name.startswith("cache."):
                words += ["--prompts", str(long), "--max-tokens", "48"]
            if name.startswith("weights."):
                words += ["--prompts", str(long), "--model", str(args.source or floats(Path(scratch) / "nib-floats"))]
            if name in TASKS:
                tasks = Path(scratch) / "tasks.jsonl"
                rows = [json.loads(line) for line in (ROOT / TASK_FILE).read_text().splitlines()]
                tasks.write_text("\n".join(json.dumps({"name": r["name"], "prompt": r["prompt"]}) for r in rows))
                words += ["--prompts", str(tasks), "--max-tokens", "12", "--set", f"{name}.{TASKS[name]}"]
            print(f"== {name}", flush=True)
            done = subprocess.run([sys.executable, "-m", "steno", *words], check=False)
            if done.returncode:
                return done.returncode
    return 0


def modules() -> list[tuple[str, str]]:
    """(name, text) of the first held-out modules of the standard library that are long enough."""
    manifest = json.loads((ROOT / "docs" / "nib" / "manifest.json").read_text())
    root = Path(sysconfig.get_paths()["stdlib"])
    out: list[tuple[str, str]] = []
    for row in manifest["held_out"]:
        path = root / row["name"].removeprefix("stdlib/")
        if row["bucket"] == "stdlib" and path.is_file() and len(out) < PROMPTS:
            text = path.read_text(encoding="utf-8")
            if len(text) >= CHARACTERS:
                out.append((row["name"], text[:CHARACTERS]))
    return out


def floats(folder: Path) -> Path:
    """nib with its weights as float32."""
    if not folder.exists():
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from steno.models import NIB

        model = AutoModelForCausalLM.from_pretrained(NIB, dtype="float32")
        model.config.quantization_config = None
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(NIB).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    sys.exit(main())
