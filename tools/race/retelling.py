"""The replay race: recorded conversations through steno and llama.cpp, one after the other, arms in turn."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .arms import Arm, make
from .contest import GREEDY
from .replays import CAPACITY, Tally
from .shapes import like
from .stage import ArmFailed, Worker
from .workload import KINDS, take


def race(
    shape: str,
    form: str,
    folder: Path,
    *,
    tokens: int,
    calibration: int,
    tune_s: float,
    threads: int,
    kinds: Sequence[str] = KINDS,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """About `tokens` output tokens of each kind; the record has a tally per arm and kind, and the total.

    calibration  output tokens of the conversations before them, which plans and peers are tuned on and do not count
    """
    # One worker per way of running llama.cpp: which is the better one depends on the length of the text.
    peer = like(form)
    arms = [Arm("steno", form), *(Arm("llama.cpp", peer, option) for option in ("", "flash") if peer)]
    workers: dict[Arm, Worker] = {}
    shuffler = random.Random(shape)
    out: dict[str, Any] = {"form": form, "kinds": {}, "plans": {}, "ways": {}, "failed": {}}
    try:
        for arm in arms:
            make(arm, shape)
            order = {
                "engine": arm.engine, "form": arm.form, "option": arm.option, "shape": shape,
                "threads": threads, "capacity": CAPACITY,
            }  # fmt: skip
            try:
                workers[arm] = Worker(arm.name, order)
            except ArmFailed as error:
                out["failed"][arm.name] = str(error)
                say(f"{shape}: {error}")
        for kind in kinds:
            first, rest = ([r.name for r in part] for part in take(kind, folder, calibration, tokens))
            asked = {"kind": kind, "data": str(folder), "calibration": calibration, "tokens": tokens}
            for worker in workers.values():
                _told(worker.ask("replay", **asked))
            lanes: dict[str, tuple[Worker, object]] = {}
            for arm, worker in _faster(workers, first).items():
                say(f"{arm.name}: tuning on {kind}")
                plan = _told(worker.ask("tune", names=first, seconds=tune_s))["plan"]
                say(f"{arm.name}: found {' '.join(str(plan).split())}")
                lanes |= _lanes(arm, worker, plan)
            out["ways"][kind] = sorted({worker.name for worker, _ in lanes.values()})
            out["plans"][kind] = {name: plan for name, (_, plan) in lanes.items() if not name.endswith("plain")}
            tallies = {name: Tally() for name in lanes}
            say(f"{shape}: replaying {kind}")
            for talk in _talks(rest):
                order = list(lanes.items())
                shuffler.shuffle(order)
                for name, (worker, plan) in order:
                    answer = _told(worker.ask("run", plan=plan, names=talk))
                    tallies[name].add(Tally(**answer["tally"]))
            out["kinds"][kind] = {name: vars(tally) for name, tally in tallies.items()}
    finally:
        for worker in workers.values():
            worker.close()
    out["total"] = total(out["kinds"])
    return out


def total(kinds: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """The tallies of all kinds as one; tuned arms of different plans are one arm."""
    out: dict[str, Tally] = {}
    for arms in kinds.values():
        for name, tally in arms.items():
            out.setdefault(name, Tally()).add(Tally(**tally))  # type: ignore[arg-type]
    return {name: vars(tally) for name, tally in out.items()}


def _faster(workers: dict[Arm, Worker], names: list[str]) -> dict[Arm, Worker]:
    """steno, and of the peer's ways of running the one that decodes the calibration texts fastest."""
    seconds = dict.fromkeys(workers, 0.0)
    for arm, worker in workers.items():
        if arm.engine != "steno":
            seconds[arm] = _told(worker.ask("run", plan=None, names=names))["tally"]["seconds"]
    chosen = {arm.row: arm for arm in sorted(workers, key=lambda arm: -seconds[arm])}
    return {arm: workers[arm] for arm in chosen.values()}


def _lanes(arm: Arm, worker: Worker, plan: object) -> dict[str, tuple[Worker, object]]:
    """An arm's two lanes, plain and tuned: (worker, plan) by name."""
    label, tuned, plain = ("steno", "tuned", GREEDY) if arm.engine == "steno" else ("llama.cpp", "n-gram", None)
    return {f"{label} plain": (worker, plain), f"{label} {tuned}": (worker, plan)}


def _talks(names: list[str]) -> list[list[str]]:
    """Names of turns, by conversation."""
    out: dict[str, list[str]] = {}
    for name in names:
        out.setdefault(name.rpartition(".")[0], []).append(name)
    return list(out.values())


def _told(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return answer
