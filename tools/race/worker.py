"""One arm in a process of its own: told what to do in lines of JSON on stdin, answers in lines of JSON on stdout.

Alone in a process, so that its start and its peak memory are its own, and so that it sleeps while others are timed.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from . import arms
from .arms import Arm

LAPS, WINDOW_S = 5, 0.15
"""Least laps of a short measurement, and how long it goes on: the first laps wake threads and warm caches."""

Tell = Callable[..., None]


def main() -> int:
    # Libraries may write to stdout: the answers go to a copy of it, and the original to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(**answer: object) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    order = json.loads(sys.argv[1])
    if order["engine"] == "read":
        return serve_reader(order, tell)
    arm = Arm(order["engine"], order["form"], order["option"])
    arms.prepare(arm)
    before = peak_bytes()
    start = time.perf_counter()
    engine = arms.load(arm, order["shape"], order["threads"])
    loaded = time.perf_counter() - start
    engine.open(1, order["capacity"])
    engine.prefill([5])
    engine.decode(1)
    version = getattr(engine, "version", "")
    tell(load_s=loaded, weight_bytes=engine.weight_bytes, version=version)
    replay = None
    for line in sys.stdin:
        ask = json.loads(line)
        do = ask["do"]
        try:
            if do == "open":
                engine.open(ask["rows"], ask["capacity"])
                tell(kv_bytes=engine.kv_bytes())
            elif do == "prefill":
                tell(seconds=engine.prefill(prompt(ask["tokens"], ask["vocab"])))
            elif do == "decode":
                engine.decode(2)
                engine.crop(ask["at"])
                seconds = engine.decode(ask["tokens"])
                engine.crop(ask["at"])
                tell(seconds=seconds / ask["tokens"])
            elif do == "width":
                tell(seconds=steady(lambda count=ask["count"]: engine.width(count)))
            elif do == "loop":
                tell(seconds=loop_seconds(engine, ask["plan"], prompt(ask["at"], ask["vocab"]), ask["tokens"]))
            elif do == "memory":
                tell(peak_bytes=peak_bytes(), before_bytes=before, kv_bytes=engine.kv_bytes())
            elif do == "replay":
                replay = open_replay(arm, engine, ask)
                tell(ok=True)
            elif do == "tune":
                found = [r for r in replay.by_name.values() if r.name in set(ask["names"])]
                tell(plan=replay.tune(found, *([ask["seconds"]] if arm.engine == "steno" else [])))
            elif do == "run":
                setting = tuple(ask["plan"]) if isinstance(ask["plan"], list) else ask["plan"]
                tell(tally=vars(replay.run(setting, ask["names"])))
            else:
                tell(error=f"there is no order {do}")
        except (NotImplementedError, RuntimeError, ValueError, AssertionError) as error:
            tell(error=f"{type(error).__name__}: {error}")
    return 0


def serve_reader(order: dict[str, Any], tell: Tell) -> int:
    """The roofline's process: reads as many bytes as it is told."""
    from .roofline import Roofline

    held: dict[int, Roofline] = {}
    tell(load_s=0.0, weight_bytes=0, version="")
    for line in sys.stdin:
        size = json.loads(line)["bytes"]
        if size not in held:
            held[size] = Roofline(size, order["threads"])
            held[size].seconds()
        tell(seconds=held[size].seconds())
    return 0


def open_replay(arm: Arm, engine: Any, ask: dict[str, Any]) -> Any:
    from .replays import LlamaReplay, StenoReplay
    from .workload import take

    first, rest = take(ask["kind"], Path(ask["data"]), ask["calibration"], ask["tokens"])
    texts = [*first, *rest]
    return (StenoReplay if arm.engine == "steno" else LlamaReplay)(engine, texts)


def steady(measure: Callable[[], float]) -> float:
    """Median of the later half of the laps that fit the window."""
    laps: list[float] = []
    while len(laps) < 2 * LAPS or (sum(laps) < WINDOW_S and len(laps) < 100):
        laps.append(measure())
    return median(laps[len(laps) // 2 :])


def loop_seconds(engine: Any, plan: str, ids: list[int], tokens: int) -> float:
    """Seconds per token of steno's own loop under a plan."""
    from steno.core import Plan
    from steno.decode.base import Request
    from steno.decode.loop import generate

    asked = Request(number=0, prompt=tuple(ids), max_tokens=tokens, ignore_eos=True)
    (done,) = generate(engine.model, [asked], Plan.from_toml(plan))
    return done.stats.decode_s / len(done.tokens)


def prompt(count: int, vocab: int) -> list[int]:
    """The race's prompt: the same ids for every arm."""
    return np.random.default_rng(count).integers(3, vocab, count).tolist()


def peak_bytes() -> int:
    """The most memory this process has held (VmHWM)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    sys.exit(main())
