"""Measure every method on nib and write `docs/evidence/`: `python tools/evidence.py [--float FOLDER] [NAME ...]`.

Drafters, acceptors and searches run on the bundled prompts; PG-TD and USCD on `tools/tasks.jsonl`, beginnings of small
functions with their unit tests; set-based prompting on prompts with lists. Cache forms and reuse methods run on text
near the model's context: the heads of standard-library modules that nib has never seen. Weights methods need a model in
floats: `--float` names one, else nib's own weights are written out as floats (which flatters 8 bits: they lie on an
8-bit grid already).
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
LISTS = [
    (subject, f'"""{subject.capitalize()}:\n\n' + "".join(f"- {item}\n" for item in items.split()) + f'"""\n\n{begun}')
    for subject, items, begun in (
        ("modules", "json re os sys math", "import"),
        ("fruit", "apple pear cherry plum", "fruit = ["),
        ("colours", "red green blue yellow black", 'COLOURS = ("'),
        ("methods", "get post put delete", "def "),
        ("errors", "KeyError ValueError TypeError OSError", "raise "),
        ("options", "verbose quiet force recursive", "parser.add_argument("),
        ("types", "int float str bool list", "def convert(value: "),
        ("fields", "name size owner mode", "self."),
        ("states", "idle running stopped failed", "if state == "),
        ("units", "bytes seconds metres", "unit = "),
        ("days", "monday tuesday wednesday thursday friday", "for day in "),
        ("files", "setup.py README.md LICENSE", "with open("),
    )
]
"""Prompts with lists in them, for set-based prompting."""
TASKS = ("decode.search.pgtd", "decode.search.uscd")
"""Methods that are measured on `tools/tasks.jsonl`."""


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
            if name.startswith(("cache.", "reuse.")):
                words += ["--prompts", str(long), "--max-tokens", "48"]
            if name == "decode.search.pac":
                words += ["--prompts", str(long)]
            if name.startswith("weights."):
                words += ["--prompts", str(long), "--model", str(args.source or floats(Path(scratch) / "nib-floats"))]
            if name in TASKS:
                words += on_tasks(name, Path(scratch))
            if name == "decode.search.set_prompting":
                lists = Path(scratch) / "lists.jsonl"
                lists.write_text("\n".join(json.dumps({"name": n, "prompt": text}) for n, text in LISTS))
                words += ["--prompts", str(lists), "--max-tokens", "24"]
            print(f"== {name}", flush=True)
            done = subprocess.run([sys.executable, "-m", "steno", *words], check=False, cwd=ROOT)
            if done.returncode:
                return done.returncode
    return 0


def on_tasks(name: str, scratch: Path) -> list[str]:
    """The words of the command that measure a method on tasks, judged by their tests."""
    rows = [json.loads(line) for line in (ROOT / "tools" / "tasks.jsonl").read_text().splitlines()]
    if name == "decode.search.uscd":
        # Its prompts show examples, which the lame prompt lacks.
        rows = [{**row, "prompt": with_examples(row["prompt"], row["tests"])} for row in rows]
    prompts, tests = scratch / "tasks.jsonl", scratch / "tests.jsonl"
    prompts.write_text("\n".join(json.dumps({"name": r["name"], "prompt": r["prompt"]}) for r in rows))
    tests.write_text("\n".join(json.dumps({"prompt": r["prompt"], "tests": r["tests"]}) for r in rows))
    settings = [f"decode.score.tests.file={tests}"]
    if name == "decode.search.pgtd":
        # Its plan is part of the record, so the file has to be one that anybody has.
        reward = '{ name = "decode.score.tests", file = "tools/tasks.jsonl" }'
        settings = [f"decode.search.pgtd.reward={reward}", "decode.search.pgtd.rollouts=128"]
    return ["--prompts", str(prompts), "--max-tokens", "12", *(w for s in settings for w in ("--set", s))]


def with_examples(prompt: str, tests: list[str]) -> str:
    """A task's prompt with its tests of the form `assert call == value` as doctests."""
    shown = [test.removeprefix("assert ").split(" == ") for test in tests if " == " in test and "\n" not in test]
    lines = "".join(f"\n    >>> {call}\n    {value}" for call, value in shown)
    head, mark, body = prompt.rpartition('"""\n')
    return f"{head}\n{lines}\n    {mark}{body}" if lines else prompt


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
