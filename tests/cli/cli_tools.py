"""Runs the real command line in a process of its own."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SRC = Path(__file__).resolve().parents[2] / "src"


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    def refused(self, *words: str, code: int = 2) -> None:
        """It ended with `code` and one clear message that holds `words`, and no traceback."""
        assert self.code == code, (self.code, self.err)
        assert "error: " in self.err
        assert "Traceback" not in self.err
        assert self.out == ""
        for word in words:
            assert word in self.err, (word, self.err)


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SRC), "NO_COLOR": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "150"} | changes


def steno(*words: str | Path, stdin: str = "", cwd: Path | None = None, **env: str) -> Ran:
    done = subprocess.run(
        [sys.executable, "-m", "steno.cli.main", *map(str, words)],
        input=stdin.encode(),
        capture_output=True,
        cwd=cwd,
        env=environment(**env),
        timeout=120,
        check=False,
    )
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())
