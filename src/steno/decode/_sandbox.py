"""Running generated Python where it can do no harm: the outside of the sandbox.

What is guaranteed, on Linux on x86-64 and aarch64, without root: a process of its own in a new session and an empty
temporary folder, which is removed; no environment; memory, processor time, wall-clock time and output bounded; no
network, no further process, no signal to another, no file written, changed or removed (`_cage`: a seccomp list of
what is let through). When the time is up, and in any case at the end, its process group is killed. Where the kernel
grants no seccomp filter nothing is run.

What is not: it can read what the user can read, and tell no one but the caller; and a program that searches its own
interpreter for the secret with which tests are reported can report tests that never ran. Leaving early, catching
everything, printing or redefining what tests call gains nothing beyond what the tests themselves let pass.
"""

import json
import os
import platform
import secrets
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

from steno.core.errors import UserError

CAGE = Path(__file__).with_name("_cage.py")


def passed(
    program: str, tests: tuple[str, ...], *, seconds: float = 3.0, memory_bytes: int = 512 << 20, output: int = 1 << 16
) -> frozenset[int]:
    """Which of `tests`, statements that raise where they fail, pass after `program`, all in one process.

    seconds       wall-clock time for all of it; tests that had passed by then count
    memory_bytes  address space
    output        bytes that may be printed

    Raises UserError where this machine has no sandbox.

    >>> sorted(passed("def double(x): return x + x", ("assert double(2) == 4", "assert double(2) == 5")))
    [0]
    """
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise UserError("tests run generated programs, which needs Linux on x86-64 or aarch64. Run it there.")
    secret = secrets.token_hex(16)
    job = {
        "program": program, "tests": tests, "secret": secret, "memory_bytes": memory_bytes,
        "seconds": max(1, round(seconds)), "output_bytes": output,
    }  # fmt: skip
    reader, writer = os.pipe()
    with TemporaryDirectory(prefix="steno-") as folder, os.fdopen(reader, "rb") as told:
        try:
            with TemporaryFile() as out:
                child = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-B", str(CAGE), str(writer)],
                    stdin=subprocess.PIPE, stdout=out, stderr=out, cwd=folder, env={"PATH": ""}, pass_fds=(writer,),
                    start_new_session=True,
                )  # fmt: skip
        finally:
            os.close(writer)
        assert child.stdin is not None
        try:
            with child.stdin as door:
                door.write(json.dumps(job).encode() + b"\n")
            # Starting an interpreter is no part of the program's time.
            locked = told.readline() == f"{secret} locked\n".encode()
            with suppress(subprocess.TimeoutExpired):
                child.wait(seconds if locked else 0)
        finally:
            if child.poll() is None:
                # Not reaped yet, so the number of its group is still its own.
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        report = [line.decode("ascii", "replace").split() for line in told.read().split(b"\n")]
    if not locked:
        raise UserError("tests run generated programs in a sandbox, and this kernel grants no seccomp filter for it.")
    return frozenset(int(words[1]) for words in report if len(words) == 2 and words[0] == secret)
