"""The supervisor's side of a worker: start it, ask it, and let nobody else run meanwhile."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[1]
SETTLE_S = 0.03
"""Pause before a measurement: thread pools of the arm before fall asleep."""


class ArmFailed(Exception):
    """An arm's process ended."""


@dataclass
class Started:
    """How a worker started. `first_s` is from the start of its process to its second token."""

    first_s: float
    load_s: float
    weight_bytes: int
    version: str


class Worker:
    """A running arm; stopped (SIGSTOP) whenever it is not asked anything."""

    def __init__(self, name: str, order: dict[str, object]) -> None:
        self.name = name
        self._said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        start = time.perf_counter()
        environment = dict(os.environ, PYTHONPATH=str(TOOLS), HF_HUB_OFFLINE="1")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "race.worker", json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=environment,
            cwd=TOOLS,
        )
        answer = self._answer()
        first = time.perf_counter() - start
        self.started = Started(first, answer["load_s"], answer["weight_bytes"], answer["version"])
        self._process.send_signal(signal.SIGSTOP)

    def ask(self, do: str, **details: object) -> dict:
        """The worker's answer; {"error": ...} where it cannot."""
        self._process.send_signal(signal.SIGCONT)
        time.sleep(SETTLE_S)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **details}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            # It ended; its answer says how.
            pass
        answer = self._answer()
        self._process.send_signal(signal.SIGSTOP)
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._said.close()

    def _answer(self) -> dict:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._said.seek(0)
            last = self._said.read().strip().rpartition("\n")[2]
            raise ArmFailed(f"{self.name} ended with {status}: {last}")
        return json.loads(line)
