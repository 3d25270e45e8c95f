"""One shape's race: all arms started, then asked in turn, round after round, in an order drawn anew each time."""

import random
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from .arms import Arm, make
from .shapes import SHAPES
from .stage import ArmFailed, Worker

PARTS = ("decode", "widths", "prefill", "batch", "long", "sampling")
WIDTHS = (1, 2, 4, 8, 16, 32)
PROMPT = 128
BASE = 192
"""Tokens held while widths are measured."""
PREFILL = 512
BATCH, LONG = 8, 4096
CAPACITY = 640
TOKENS = {"15M": 64, "110M": 48, "500M": 24, "1.1B": 16}
GREEDY = "steno = 1\n"
SAMPLED = 'steno = 1\n[[knob]]\nname = "decode.accept.gumbel"\n[[knob]]\nname = "decode.shape.temperature"\n'

Samples = dict[str, list[float]]


class Contest:
    """`say` hears what is going on."""

    def __init__(self, shape: str, arms: Sequence[Arm], threads: int, say: Callable[[str], None]) -> None:
        self.shape = shape
        self.size = SHAPES[shape]
        self.threads = threads
        self.say = say
        self.random = random.Random(shape)
        self.failed: dict[str, str] = {}
        self.samples: dict[Arm, Samples] = {arm: {} for arm in arms}
        self.workers: dict[Arm, Worker] = {}
        self.reader: Worker | None = None

    def run(self, parts: Sequence[str], rounds: int) -> dict[str, Any]:
        """All parts; returns the shape's record."""
        try:
            self._start()
            near = [part for part in ("decode", "widths", "prefill") if part in parts]
            for lap in range(rounds + 1 if near else 0):
                self._each(lambda arm, worker, lap=lap: self._near(arm, worker, near, counted=lap > 0))
            self._each(self._memory)
            if "sampling" in parts:
                for lap in range(rounds + 1):
                    self._each(lambda arm, worker, lap=lap: self._sampling(arm, worker, counted=lap > 0))
            for part in ("batch", "long"):
                if part in parts:
                    self._each(lambda arm, worker, part=part: self._open(arm, worker, part))
                    for _ in range(rounds):
                        self._each(lambda arm, worker, part=part: self._decode(arm, worker, part))
            return self._record()
        finally:
            for worker in [*self.workers.values(), *([self.reader] if self.reader else [])]:
                worker.close()

    def _start(self) -> None:
        """Start every arm twice: the first start may write caches, the second is timed and stays."""
        for arm in self.samples:
            make(arm, self.shape)
            order = {
                "engine": arm.engine, "form": arm.form, "option": arm.option, "shape": self.shape,
                "threads": self.threads, "capacity": CAPACITY,
            }  # fmt: skip
            self.say(f"{self.shape}: starting {arm.name}")
            try:
                Worker(arm.name, order).close()
                self.workers[arm] = Worker(arm.name, order)
            except ArmFailed as error:
                self.failed[arm.name] = str(error)
                self.say(f"{self.shape}: {error}")
        self.reader = Worker("read", {"engine": "read", "threads": self.threads})

    def _each(self, turn: Callable[[Arm, Worker], None]) -> None:
        """Every arm's turn, in a new order; an arm that ends is out, and what it gave stays."""
        order = list(self.workers.items())
        self.random.shuffle(order)
        for arm, worker in order:
            try:
                turn(arm, worker)
            except ArmFailed as error:
                self.failed[arm.name] = str(error)
                self.say(f"{self.shape}: {error}")
                del self.workers[arm]

    def _put(self, arm: Arm, key: str, answer: dict[str, Any], *, counted: bool = True) -> None:
        if "error" in answer and arm.name not in self.failed:
            self.failed[arm.name] = f"{key}: {answer['error']}"
            self.say(f"{self.shape}: {arm.name} cannot do {key}: {answer['error']}")
        if counted and "seconds" in answer:
            self.samples[arm].setdefault(key, []).append(answer["seconds"])

    def _near(self, arm: Arm, worker: Worker, parts: Sequence[str], *, counted: bool) -> None:
        vocab = self.size.vocab
        if "decode" in parts:
            assert self.reader is not None
            self._put(arm, "roof", self.reader.ask("read", bytes=self.size.weight_bytes(arm.form)), counted=counted)
            worker.ask("prefill", tokens=PROMPT, vocab=vocab)
            answer = worker.ask("decode", at=PROMPT, tokens=TOKENS[self.shape])
            self._put(arm, "decode", answer, counted=counted)
        if "widths" in parts:
            worker.ask("prefill", tokens=BASE, vocab=vocab)
            for count in WIDTHS:
                self._put(arm, f"width {count}", worker.ask("width", count=count), counted=counted)
        if "prefill" in parts:
            self._put(arm, "prefill", worker.ask("prefill", tokens=PREFILL, vocab=vocab), counted=counted)

    def _memory(self, arm: Arm, worker: Worker) -> None:
        answer = worker.ask("memory")
        for key in ("peak_bytes", "before_bytes", "kv_bytes"):
            self.samples[arm][key] = [float(answer[key])]

    def _sampling(self, arm: Arm, worker: Worker, *, counted: bool) -> None:
        if arm.engine == "steno":
            for key, plan in (("greedy", GREEDY), ("sampled", SAMPLED)):
                ask = {"plan": plan, "at": PROMPT, "tokens": TOKENS[self.shape], "vocab": self.size.vocab}
                self._put(arm, key, worker.ask("loop", **ask), counted=counted)

    def _open(self, arm: Arm, worker: Worker, part: str) -> None:
        if part == "long" and arm.engine == "CTranslate2":
            # It would fill 4,096 tokens anew for every figure, and the difference of two fills is noise.
            return
        rows, held = (BATCH, PROMPT) if part == "batch" else (1, LONG)
        worker.ask("open", rows=rows, capacity=held + 64)
        answer = worker.ask("prefill", tokens=held, vocab=self.size.vocab)
        if part == "long":
            self._put(arm, "long prefill", answer)

    def _decode(self, arm: Arm, worker: Worker, part: str) -> None:
        if part == "batch" or arm.engine != "CTranslate2":
            at = PROMPT if part == "batch" else LONG
            self._put(arm, part, worker.ask("decode", at=at, tokens=max(8, TOKENS[self.shape] // 2)))

    def _record(self) -> dict[str, Any]:
        rows: dict[str, dict[str, Any]] = {}
        for arm, samples in self.samples.items():
            worker = self.workers.get(arm)
            if worker is not None and samples:
                found = self._figures(arm, worker, samples)
                rows[arm.row] = best_of(rows.get(arm.row), found)
        return {"shape": self.size.as_plain(), "rows": rows, "failed": self.failed}

    def _figures(self, arm: Arm, worker: Worker, samples: Samples) -> dict[str, Any]:
        """An arm's medians, in the units of the table."""
        mid = {key: median(values) for key, values in samples.items()}
        started = worker.started
        out: dict[str, Any] = {
            "options": arm.option,
            "version": started.version,
            "first_s": started.first_s,
            "load_s": started.load_s,
            "peak_bytes": mid["peak_bytes"],
            "held_bytes": mid["peak_bytes"] - mid["before_bytes"],
            "needed_bytes": self.size.weight_bytes(arm.form) + mid["kv_bytes"],
        }
        scaled = {"decode": "ms", "roof": "roof_ms", "batch": "batch_ms", "long": "long_ms"}
        scaled |= {"greedy": "greedy_ms", "sampled": "sampled_ms"}
        out |= {name: 1e3 * mid[key] for key, name in scaled.items() if key in mid}
        if "decode" in samples:
            out["spread_ms"] = [1e3 * min(samples["decode"]), 1e3 * max(samples["decode"])]
        widths = {str(w): 1e3 * mid[f"width {w}"] for w in WIDTHS if f"width {w}" in mid}
        if widths:
            out["width_ms"] = widths
        for key, name, count in (("prefill", "prefill_per_s", PREFILL), ("long prefill", "long_prefill_per_s", LONG)):
            if key in mid:
                out[name] = count / mid[key]
        return out


LOWER = ("ms", "batch_ms", "long_ms", "first_s", "load_s", "peak_bytes")
HIGHER = ("prefill_per_s", "long_prefill_per_s")


def best_of(one: dict[str, Any] | None, other: dict[str, Any]) -> dict[str, Any]:
    """Two ways of running an arm as one row: of every figure the better one; what belongs together stays together."""
    if one is None:
        return other
    out = {**other, **one}
    for key in LOWER + HIGHER:
        if key in one and key in other:
            out[key] = (min if key in LOWER else max)(one[key], other[key])
    if "width_ms" in one and "width_ms" in other:
        out["width_ms"] = {w: min(one["width_ms"][w], other["width_ms"][w]) for w in one["width_ms"]}
    if other.get("ms", 0.0) == out.get("ms") and "spread_ms" in other:
        out["spread_ms"] = other["spread_ms"]
    out["options"] = f"best of: {one['options'] or 'default'}, {other['options'] or 'default'}"
    return out
