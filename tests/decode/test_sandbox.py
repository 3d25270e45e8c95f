"""The sandbox: what a program may do, each thing that it may not, and the filter read line by line."""

import os
import sys
import threading

import pytest

from steno.core.errors import UserError
from steno.decode import _cage, _sandbox
from steno.decode._sandbox import passed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is seccomp's")

TRY = """
import os, sys
def denied(call, *arguments):
    try:
        call(*arguments)
    except PermissionError:
        return True
"""


def test_tests_pass_or_fail_one_by_one():
    program = "def double(x): return x + x"
    assert passed(program, ("assert double(2) == 4", "assert double(2) == 5", "double()", "assert double('a')")) == {
        0,
        3,
    }
    assert passed("def double(x", ("assert double(2) == 4",)) == frozenset()
    assert passed("raise ValueError", ("pass",)) == frozenset()


def test_a_program_that_breaks_off_is_cut_to_what_compiles():
    assert passed("def one():\n    return 1\n\ndef two(:\n    retur", ("assert one() == 1",)) == {0}


def test_ordinary_programs_run():
    """Imports, threads, printing, reading its own modules: what is let through is enough for them."""
    program = """
import collections, heapq, itertools, json, math, random, re, string, threading, time
print(random.random(), time.time())
done = []
thread = threading.Thread(target=lambda: done.append(1))
thread.start()
thread.join()
"""
    assert passed(program, ("assert done == [1]", "assert json.loads('[1]') == [1]")) == {0, 1}


DENIED = (
    "__import__('socket').socket",
    "os.fork",
    "os.execv, '/bin/true', ['true']",
    "os.posix_spawn, '/bin/true', ['true'], {}",
    "os.kill, os.getppid(), 0",
    "os.setsid",
    "os.remove, FILE",
    "os.rename, FILE, FILE + '2'",
    "os.truncate, FILE, 0",
    "os.chmod, FILE, 0",
    "os.symlink, FILE, FILE + '2'",
    "os.mkdir, FILE + '2'",
    "open, FILE, 'w'",
    "open, FILE, 'a'",
    "open, FILE, 'r+'",
    "os.open, FILE, os.O_RDONLY | os.O_CREAT",
    "os.utime, FILE",
    "os.chdir, '/'",
)


def test_what_is_denied(tmp_path):
    file = tmp_path / "file"
    file.write_text("kept")
    tests = tuple(f"assert denied({call.replace('FILE', repr(str(file)))})" for call in DENIED)
    assert passed(TRY, tests) == set(range(len(DENIED)))
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and file.read_text() == "kept"


@pytest.mark.slow
def test_limits_hold():
    before = set(os.listdir("/tmp"))
    assert passed("while True: pass", ("pass",), seconds=0.3) == frozenset()
    assert passed("import time", ("pass", "time.sleep(60)", "pass"), seconds=0.3) == {0}, "what passed in time counts"
    assert passed("text = 'a' * (1 << 30)", ("pass",), memory_bytes=128 << 20) == frozenset()
    assert passed("print('a' * 10000, flush=True)", ("pass",), output=1000) == frozenset()
    assert passed("import os\nos._exit(0)", ("pass",)) == frozenset(), "leaving early is no success"
    assert passed(
        "import os, sys", ("assert os.getcwd() != '/' and not os.listdir()", "assert len(os.environ) < 3")
    ) == {0, 1}
    left = {name for name in set(os.listdir("/tmp")) - before if name.startswith("steno-")}
    assert not left


def test_a_program_that_guesses_reports_nothing():
    program = (
        "import os\nfor n in range(3, 64):\n    try: os.write(n, b'0 0\\n')\n    except OSError: pass\nos._exit(0)"
    )
    assert passed(program, ("assert False",)) == frozenset()


@pytest.mark.slow
def test_nothing_is_left_running():
    threads = threading.active_count()
    passed("while True: pass", ("pass",), seconds=0.2)
    assert threading.active_count() == threads
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def run_filter(machine, arch, number, arguments=(0,) * 6):
    """The filter's answer to a call, by reading it as the kernel does."""
    lines, words, here = _cage.rules(machine), {0: number, 4: arch}, 0
    words |= {16 + 8 * i: value & 0xFFFFFFFF for i, value in enumerate(arguments)}
    held = 0
    while True:
        code, yes, no, operand = lines[here]
        here += 1
        match code:
            case _cage.LOAD:
                held = words[operand]
            case _cage.RETURN:
                return operand
            case _cage.EQUAL:
                here += yes if held == operand else no
            case _cage.ANY_BIT:
                here += yes if held & operand else no
            case _cage.AT_LEAST:
                here += yes if held >= operand else no


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_line_by_line(machine):
    def answer(number, *arguments):
        return run_filter(machine, _cage.ARCH[machine], number, arguments or (0,) * 6)

    looked_at = {_cage.OPENAT[machine], _cage.CLONE[machine], _cage.FCNTL[machine], _cage.IOCTL[machine]}
    allowed = {number for number in range(600) if answer(number) == _cage.ALLOW}
    assert allowed == set(_cage.PLAIN[machine]) | looked_at - {_cage.CLONE[machine], _cage.IOCTL[machine]}
    assert answer(_cage.CLONE3) == _cage.MISSING
    assert answer(_cage.CLONE[machine], _cage.CLONE_THREAD) == _cage.ALLOW
    assert answer(_cage.CLONE[machine], 0x4111) == _cage.DENY
    for flags in (1, 2, 0x40, 0x241, 0x80001):
        assert answer(_cage.OPENAT[machine], 0, 0, flags) == _cage.DENY
    assert answer(_cage.OPENAT[machine], 0, 0, 0x80000) == _cage.ALLOW
    assert answer(_cage.FCNTL[machine], 0, 8) == answer(_cage.IOCTL[machine], 0, 0x5412) == _cage.DENY
    assert run_filter(machine, 0x40000003, 1) == _cage.KILL and answer(0x40000001) == _cage.KILL


def test_without_a_sandbox_nothing_is_run(monkeypatch, tmp_path):
    fake = tmp_path / "cage.py"
    fake.write_text("raise OSError")
    monkeypatch.setattr(_sandbox, "CAGE", fake)
    with pytest.raises(UserError, match="no seccomp filter"):
        passed("", ("pass",))
    monkeypatch.setattr(_sandbox.platform, "machine", lambda: "riscv64")
    with pytest.raises(UserError, match="Linux on x86-64"):
        passed("", ("pass",))
