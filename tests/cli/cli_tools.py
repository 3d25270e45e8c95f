"""Runs the real command line: `steno` through its entry point in this process, `process` in one of its own."""

import io
import os
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from steno.cli.main import main

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
        assert "defect of steno" not in self.err
        assert self.out == ""
        for word in words:
            assert word in self.err, (word, self.err)


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SRC), "NO_COLOR": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "150"} | changes


def steno(*words: str | Path, stdin: str = "", cwd: Path | None = None, **env: str) -> Ran:
    """`main` as the installed command calls it, with streams of its own."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    typed = io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8")
    with (
        mock.patch.dict(os.environ, environment(**env)),
        mock.patch.object(sys, "stdin", typed),
        redirect_stdout(out),
        redirect_stderr(err),
        chdir(cwd or Path.cwd()),
    ):
        code = 0
        try:
            main([str(word) for word in words])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    return Ran(code, *(s.buffer.getvalue().decode() for s in (out, err)))  # type: ignore[attr-defined]


def process(*words: str | Path, **env: str) -> Ran:
    """`python -m steno.cli.main` from start to end."""
    done = subprocess.run(
        [sys.executable, "-m", "steno.cli.main", *map(str, words)],
        capture_output=True,
        env=environment(**env),
        timeout=120,
        check=False,
    )
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())
