"""`make bench`: steno's engine beside transformers, llama.cpp and CTranslate2 on the same random weights.

    python tools/bench.py [--shapes 15M,110M] [--arms steno,llama] [--parts decode,prefill] [--replay 110M] [--show]

Every arm runs in a process of its own, which sleeps while another is timed; arms take turns in an order drawn anew each
round, and figures are medians. Shapes and parts that a call does not name stay in the JSON file as they were, so a race
can be run in slices. The exit code says whether the race could be run; whether floors were met stands in the table.
"""

import argparse
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from race import arms as known
from race import table, workload
from race.contest import PARTS, Contest
from race.roofline import FAR, Roofline
from race.shapes import SHAPES

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "docs" / "bench" / "cpu.json"
PEERS = ("llama-cpp-python", "ctranslate2", "transformers", "torch")
BYTES_PER_PARAMETER = 12
"""Memory a shape needs here at worst: a checkpoint, floats, and a peer's copy."""


def main() -> int:
    args = _arguments()
    record: dict[str, Any] = json.loads(args.json.read_text(encoding="utf-8")) if args.json.exists() else {}
    if args.show:
        print(table.render(record))
        return 0
    shapes = _listed(args.shapes, SHAPES, "shape")
    parts = _listed(args.parts, PARTS, "part")
    replayed = _listed(args.replay, SHAPES, "shape")
    if shapes or replayed:
        record |= _taken_on(args.threads)
    for shape in shapes:
        if SHAPES[shape].parameters * BYTES_PER_PARAMETER > record["machine"]["memory_bytes"]:
            say(f"{shape} is left out: it needs more memory than this machine has")
            continue
        chosen = [arm for arm in known.arms() if any(word in arm.name for word in args.arms.split(","))]
        if not chosen:
            sys.exit(f"error: no arm is named {args.arms}; the arms are {', '.join(a.name for a in known.arms())}")
        found = Contest(shape, chosen, args.threads, say).run(parts, args.rounds)
        _merge(record, shape, found | {"commit": record["commit"]})
        _save(args.json, record)
    for shape in replayed:
        _replay(record, shape, args)
        _save(args.json, record)
    print(table.render(record))
    return 0


def _replay(record: dict[str, Any], shape: str, args: argparse.Namespace) -> None:
    folder = workload.data()
    if folder is None:
        say("the replay of recorded text is left out: set STENO_DATA to the folder that holds inference/tau-bench")
        return
    if not known.installed("llama.cpp"):
        say("the replay of recorded text is left out: it races llama.cpp, which is not installed. Run: make bench")
        return
    from race.retelling import race, total

    found = race(
        shape, args.form, folder, tokens=args.replay_tokens, calibration=args.calibration, tune_s=args.tune_seconds,
        threads=args.threads, kinds=_listed(args.kinds, workload.KINDS, "kind"), say=say,
    )  # fmt: skip
    old = record.setdefault("replay", {}).get(shape, {"kinds": {}, "plans": {}, "ways": {}})
    for part in ("kinds", "plans", "ways"):
        found[part] = old[part] | found[part]
    found["total"] = total(found["kinds"])
    record["replay"][shape] = found | {"commit": record["commit"]}


def _merge(record: dict[str, Any], shape: str, found: dict[str, Any]) -> None:
    """What was measured now replaces the same figures of the same arms; the rest stays."""
    shapes = record.setdefault("shapes", {})
    old = shapes.get(shape, {"rows": {}})
    rows = old["rows"]
    for name, row in found["rows"].items():
        rows[name] = rows.get(name, {}) | row
    shapes[shape] = found | {"rows": rows}
    # Shapes stand in the table by size, whatever the order they were raced in.
    record["shapes"] = {name: shapes[name] for name in SHAPES if name in shapes}


def _taken_on(threads: int) -> dict[str, Any]:
    """What figures depend on: machine, versions, commit, date, and the speed of memory."""
    from steno.measure import to_plain
    from steno.measure.machine import here

    far = Roofline(FAR, threads)
    versions = {}
    for name in PEERS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            say(f"{name} is not installed and is left out. Run: make bench")
    return {
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": to_plain(here(threads=threads, isa=_isa())),
        "threads": threads,
        "versions": versions,
        "memory_bytes_per_s": far.size / far.seconds(),
    }


def _isa() -> str:
    from steno.models import locate
    from steno.models.native import load

    return load(locate("nib"), threads=1).isa


def _commit() -> str:
    git = ["git", "-C", str(ROOT)]
    try:
        head, dirty = (
            subprocess.run([*git, *words], check=True, capture_output=True, text=True).stdout.strip()
            for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "src", "native"))
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if dirty else "")


def _listed(text: str, allowed: Any, what: str) -> list[str]:
    names = [word for word in text.split(",") if word]
    for name in names:
        if name not in allowed:
            sys.exit(f"error: there is no {what} {name}; there are {', '.join(allowed)}")
    return names


def _save(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def say(text: str) -> None:
    print(f"{datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(description="Race the engine against its peers.")
    parser.add_argument("--shapes", default="15M,110M,500M,1.1B", help="'' for none")
    parser.add_argument("--arms", default="", help="only arms whose name holds one of these words")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--replay", default="110M,500M", help="shapes that replay recorded text; '' for none")
    parser.add_argument("--kinds", default=",".join(workload.KINDS), help="recorded texts")
    parser.add_argument("--form", default="int8", help="weight form of the replay")
    parser.add_argument("--replay-tokens", type=int, default=1500, help="output tokens of each kind")
    parser.add_argument("--calibration", type=int, default=1000, help="output tokens of each kind to tune on")
    parser.add_argument("--tune-seconds", type=float, default=60.0, help="for the search of a plan, per kind")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=min(2, cores))
    parser.add_argument("--json", type=Path, default=RECORD)
    parser.add_argument("--show", action="store_true", help="print the tables of the JSON file, race nothing")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
