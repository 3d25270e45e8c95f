"""The engine on processors this machine does not have: NEON, and x86-64 without AVX or AVX-512, under qemu.

`native/check/bits.cpp` runs tiny models in every way that may not change a bit and prints a hash per case. Here it is
built for x86-64 and for aarch64, and every build, instruction set and processor has to print the same. An emulated
processor stops at an instruction it does not have, so these runs also prove that none is reached unasked: neither by
the dispatch nor through a template that the linker kept in a form compiled for another processor.
"""

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SOURCE = Path(__file__).parents[2] / "native"
MODELS = ("plain", "tied", "window")
FORMS = ("fp32", "bf16", "int8", "int4", "int4-64")
NATIVE = platform.machine()


@dataclass(frozen=True)
class Machine:
    """An emulated processor, the instruction sets it must offer, the one to run, and arguments that say how much."""

    arch: str
    cpu: str
    sets: tuple[str, ...]
    isa: str
    some: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.cpu}-{self.isa}"


# qemu emulates x86-64 slowly, and its waiting threads most slowly of all.
FEW = ("--few", "plain")
MACHINES = (
    Machine("aarch64", "max", ("neondot", "neon", "scalar"), "neondot"),
    Machine("aarch64", "max", ("neondot", "neon", "scalar"), "scalar", FEW),
    Machine("aarch64", "cortex-a57", ("neon", "scalar"), "neon"),
    Machine("x86_64", "Haswell", ("avx2", "scalar"), "avx2", FEW),
    Machine("x86_64", "Nehalem", ("scalar",), "scalar", FEW),
)


def build(folder: Path, arch: str) -> Path:
    """The check for `arch`; skips where no compiler for it is installed."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    cmake, ninja = (shutil.which(tool, path=path) for tool in ("cmake", "ninja"))
    if not cmake or not ninja:
        pytest.skip("cmake and ninja are not installed (run: make setup)")
    settings = ["-DSTENO_MODULE=OFF", "-DSTENO_CHECK=ON", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    if arch != NATIVE:
        compiler = shutil.which(f"{arch.replace('_', '-')}-linux-gnu-g++")
        if not compiler:
            pytest.skip(f"no cross compiler (run: apt-get install g++-{arch.replace('_', '-')}-linux-gnu)")
        settings += [
            f"-DCMAKE_CXX_COMPILER={compiler}", "-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_SYSTEM_PROCESSOR={arch}",
        ]  # fmt: skip
    for command in (["-S", SOURCE, "-B", folder, "-G", "Ninja", *settings], ["--build", folder]):
        run = subprocess.run([cmake, *map(str, command)], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    return folder / "bits"


def emulator(arch: str) -> str:
    for name in (f"qemu-{arch}-static", f"qemu-{arch}"):
        found = shutil.which(name)
        if found:
            return found
    pytest.skip("no emulator (run: apt-get install qemu-user-static)")


def output(command: list[str], isa: str = "") -> list[str]:
    env = {**os.environ, "STENO_ISA": isa}
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{command} STENO_ISA={isa}: status {run.returncode}\n{run.stderr[-2000:]}"
    return run.stdout.splitlines()


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """arch -> path of the check, built when first asked for."""
    built: dict[str, Path] = {}

    def program(arch: str) -> str:
        if arch not in built:
            built[arch] = build(tmp_path_factory.mktemp(arch), arch)
        return str(built[arch])

    return program


@pytest.fixture(scope="module")
def truth(programs):
    """What this machine prints with its best instruction set."""
    return output([programs(NATIVE)])


def test_the_check_says_what_it_should(truth):
    """A model and form has one hash whatever the width, pieces, batch, tree and threads; models and forms differ."""
    cases = [line.split() for line in truth]
    found = {(model, form): {h for m, f, case, h in cases if (m, f) == (model, form) and case.startswith("text/")}
             for model in MODELS for form in FORMS}  # fmt: skip
    assert all(len(hashes) == 1 for hashes in found.values()), found
    assert len(set.union(*found.values())) == len(MODELS) * len(FORMS)
    one = [case for m, f, case, _ in cases if (m, f) == ("plain", "int8")]
    assert {f"text/width={w}" for w in range(1, 33)} <= set(one)
    assert {f"text/threads={t}{how}" for t in (2, 3, 4) for how in ("", "/trees", "/batch")} <= set(one)
    assert {"text/trees", "text/pieces=13", "text/batch=2", "text/batch=8", "forest"} <= set(one)


def test_every_instruction_set_of_this_machine(programs, truth):
    sets = output([programs(NATIVE), "--list"])
    assert "scalar" in sets
    for isa in sets:
        assert output([programs(NATIVE)], isa) == truth, isa


@pytest.mark.parametrize("machine", MACHINES, ids=str)
def test_another_processor_prints_the_same(programs, truth, machine):
    command = [emulator(machine.arch), "-cpu", machine.cpu, programs(machine.arch)]
    assert output([*command, "--list"]) == list(machine.sets)
    # The best set is what runs unasked: that is the dispatch of that processor.
    asked = "" if machine.isa == machine.sets[0] else machine.isa
    found = output([*command, *machine.some], asked)
    assert found == output([programs(NATIVE), *machine.some])
    assert set(found) <= set(truth)
    assert len(found) == len(truth) or len(found) == 9 * len(FORMS)


def test_an_instruction_set_the_processor_lacks_is_refused(programs):
    command = [emulator("aarch64"), "-cpu", "cortex-a57", programs("aarch64")]
    run = subprocess.run(
        command, env={**os.environ, "STENO_ISA": "neondot"}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert (
        'STENO_ISA: "neondot" is not an instruction set this processor can run; it can run neon, scalar.' in run.stderr
    )
