"""Unit tests as a score: the share of them that a generated Python program passes, really run, in a sandbox.

The program is prompt and text, cut to its longest beginning in whole lines that compiles. What the sandbox guarantees
and what it does not is said in `_sandbox`. The pass rate on public tests is the reward of PG-TD.

A file holds one JSON object a line: {"prompt": "...", "tests": ["assert ...", ...]}. A line is for the requests with
just that prompt; without "prompt" it is for all others.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, ClassVar, cast

from steno.core import Card, Span
from steno.core.errors import UserError

from .._sandbox import passed
from ..base import Candidate, ScorerKnob

CARD = Card(paper="Planning with Large Language Models for Code Generation", task=True)


@dataclass(frozen=True, kw_only=True)
class UnitTests(ScorerKnob):
    """No program is run twice by one process. Time is wall-clock, so a program near the limit may pass or not."""

    card: ClassVar[Card] = CARD

    file: str = ""
    seconds: Annotated[float, Span(0.1, 600.0, "s")] = 3.0
    memory_mb: Annotated[int, Span(64, 1 << 20, "MiB")] = 512

    def score(self, candidate: Candidate) -> float:
        prompt, program = candidate.read(self.name)
        tests = _tests(self.file, prompt)
        return len(_passed(program, tests, self.seconds, self.memory_mb)) / len(tests)


@lru_cache(maxsize=4096)
def _passed(program: str, tests: tuple[str, ...], seconds: float, memory_mb: int) -> frozenset[int]:
    return passed(program, tests, seconds=seconds, memory_bytes=memory_mb << 20)


def _tests(file: str, prompt: str) -> tuple[str, ...]:
    """The tests for a prompt. Raises UserError where there are none."""
    if not file:
        raise UserError(
            "decode.score.tests needs a file of tests. "
            'Write for example: { name = "decode.score.tests", file = "tests.jsonl" }'
        )
    try:
        stamp = Path(file).stat().st_mtime_ns
    except OSError:
        raise UserError(f"decode.score.tests: there is no file {file}.") from None
    known = _read(file, stamp)
    tests = known.get(prompt, known.get(None))
    if not tests:
        raise UserError(f"decode.score.tests: {file} has no tests for the prompt {prompt[:40]!r}, and none for all.")
    return tests


@lru_cache(maxsize=8)
def _read(file: str, stamp: int) -> dict[str | None, tuple[str, ...]]:
    """`stamp` is part of the cache's key."""
    out: dict[str | None, tuple[str, ...]] = {}
    for number, line in enumerate(Path(file).read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                row = cast(dict[str, object], json.loads(line))
                prompt, tests = cast(str | None, row.get("prompt")), cast(list[str], row["tests"])
                assert all(isinstance(test, str) for test in tests)
            except (ValueError, KeyError, TypeError, AttributeError, AssertionError):
                raise UserError(
                    f'{file}, line {number}: expected {{"prompt": "...", "tests": ["assert ..."]}}, got {line[:60]!r}'
                ) from None
            out[prompt] = tuple(tests)
    return out
