"""The inside of the sandbox: a script that locks itself in, runs a program it was given, then its tests.

It runs as `python -I -S _cage.py FD` with one line of JSON on standard input, and is never imported. In this order:
limits on memory, processor time and file size; death with the parent; no new privileges; a seccomp filter that lets
through a list of system calls and answers all others with EPERM. The list has no way to make a socket, a process or a
signal, to open a file for writing, or to change, rename or remove one. Only then is the program compiled.

A test passed where its line runs without an exception; each is reported at once, with the secret, through the pipe FD.
"""

import ctypes
import json
import os
import platform
import resource
import sys
from types import CodeType

CLONE_THREAD, WRITING = 0x10000, 0x243
"""The flag of a new thread; O_WRONLY, O_RDWR, O_CREAT and O_TRUNC."""

# fmt: off
PLAIN = {
    "x86_64": (
        0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 19, 20, 21, 22, 23, 24, 25, 28, 32, 33, 35, 39, 60, 63,
        79, 89, 96, 97, 98, 99, 100, 102, 104, 107, 108, 110, 131, 158, 186, 201, 202, 204, 217, 219, 228, 229, 230,
        231, 262, 267, 269, 270, 271, 273, 292, 293, 318, 332, 334, 439,
    ),
    "aarch64": (
        17, 23, 24, 48, 57, 59, 61, 62, 63, 64, 65, 66, 67, 72, 73, 78, 79, 80, 93, 94, 98, 99, 101, 113, 114, 115, 123,
        124, 128, 132, 134, 135, 139, 153, 160, 163, 165, 169, 172, 173, 174, 175, 176, 177, 178, 179, 214, 215, 216,
        222, 226, 233, 278, 291, 293, 439,
    ),
}
"""Calls that are let through: read, write, close, stat, seek, memory, waiting, clocks, own ids and own signal masks."""
# fmt: on

ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
OPENAT = {"x86_64": 257, "aarch64": 56}
CLONE = {"x86_64": 56, "aarch64": 220}
FCNTL = {"x86_64": 72, "aarch64": 25}
IOCTL = {"x86_64": 16, "aarch64": 29}
CLONE3 = 435
FCNTL_COMMANDS = (0, 1, 2, 3, 1030)
"""F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC: F_SETOWN could send a signal."""
IOCTL_COMMANDS = (0x5401, 0x5413, 0x5451)
"""TCGETS, TIOCGWINSZ, FIOCLEX."""

LOAD, EQUAL, ANY_BIT, AT_LEAST, RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
ALLOW, DENY, MISSING, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
ARGUMENT = 16
"""Where the first argument stands; each takes 8 bytes, the low half first."""

Instruction = tuple[int, int, int, int]


def rules(machine: str) -> list[Instruction]:
    """The filter: (code, jump if true, jump if false, operand) per line."""
    out: list[Instruction] = [
        (LOAD, 0, 0, 4), (EQUAL, 1, 0, ARCH[machine]), (RETURN, 0, 0, KILL),
        # Numbers from 2^30 on are those of x32 programs, which no list here knows.
        (LOAD, 0, 0, 0), (AT_LEAST, 0, 1, 0x40000000), (RETURN, 0, 0, KILL),
    ]  # fmt: skip
    for number in PLAIN[machine]:
        out += [(EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    # Without clone3 the C library falls back to clone, whose flags can be looked at.
    out += [(EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, MISSING)]
    out += _looked_at(OPENAT[machine], 2, [(ANY_BIT, 0, 1, WRITING), (RETURN, 0, 0, DENY), (RETURN, 0, 0, ALLOW)])
    out += _looked_at(CLONE[machine], 0, [(ANY_BIT, 0, 1, CLONE_THREAD), (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, DENY)])
    for call, commands in ((FCNTL[machine], FCNTL_COMMANDS), (IOCTL[machine], IOCTL_COMMANDS)):
        known: list[Instruction] = []
        for command in commands:
            known += [(EQUAL, 0, 1, command), (RETURN, 0, 0, ALLOW)]
        out += _looked_at(call, 1, [*known, (RETURN, 0, 0, DENY)])
    return [*out, (RETURN, 0, 0, DENY)]


def _looked_at(number: int, argument: int, lines: list[Instruction]) -> list[Instruction]:
    """`lines` on the low half of a call's argument; they return. Other calls skip them."""
    return [(EQUAL, 0, len(lines) + 1, number), (LOAD, 0, 0, ARGUMENT + 8 * argument), *lines]


class Filter(ctypes.Structure):
    """struct sock_filter."""

    _fields_ = (("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint))


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.POINTER(Filter)))


def lock(memory_bytes: int, seconds: int, output_bytes: int) -> None:
    """Limits and the filter. Raises OSError where the kernel refuses; then nothing may run."""
    for what, most in (
        (resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_FSIZE, output_bytes),
        (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 64),
    ):  # fmt: skip
        resource.setrlimit(what, (most, most))
    lines = rules(platform.machine())
    array = (Filter * len(lines))(*(Filter(*line) for line in lines))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    # PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP with SECCOMP_MODE_FILTER.
    for arguments in ((1, 9, 0, 0, 0), (38, 1, 0, 0, 0), (22, 2, ctypes.byref(Program(len(lines), array)), 0, 0)):
        if prctl(*arguments):
            raise OSError(ctypes.get_errno(), "prctl")


def main() -> None:
    """Lock up, run, report."""
    job = json.loads(sys.stdin.readline())
    pipe = int(sys.argv[1])
    lock(job["memory_bytes"], job["seconds"], job["output_bytes"])
    os.write(pipe, f"{job['secret']} locked\n".encode())
    # Not "__main__": what a script does when it is run is not under test.
    space: dict[str, object] = {"__name__": "program"}
    exec(compiled(job["program"]), space)
    for number, test in enumerate(job["tests"]):
        try:
            exec(compile(test, "test", "exec"), space)
        except Exception:
            continue
        os.write(pipe, f"{job['secret']} {number}\n".encode())


def compiled(program: str) -> CodeType:
    """The program's longest beginning in whole lines that compiles: generated text may break off anywhere."""
    lines = program.split("\n")
    while lines:
        try:
            return compile("\n".join(lines), "program", "exec")
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            lines.pop()
    return compile("", "program", "exec")


if __name__ == "__main__":
    main()
