"""The machine figures are taken on, and how much of it others used meanwhile."""

import os
import platform
import sys
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from steno import __version__

from .base import Machine

PACKAGES = ("torch", "transformers", "numpy", "tokenizers", "safetensors")


def here(threads: int = 0, isa: str = "") -> Machine:
    """This machine. `isa` is what the native engine says it uses; `threads` 0 stands for all usable cores."""
    versions = {"steno": __version__}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return Machine(
        cpu=_cpu(),
        cores=usable_cores(),
        memory_bytes=_memory(),
        gpu=_gpu(),
        os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        versions=versions,
        isa=isa,
        threads=threads or usable_cores(),
    )


def usable_cores() -> int:
    """Logical cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Clock:
    """Processor seconds at one moment: of the machine, and of this process with its children.

    busy  None where the system does not tell (no /proc/stat)
    """

    wall: float
    busy: float | None
    own: float

    @staticmethod
    def now() -> "Clock":
        times = os.times()
        own = times.user + times.system + times.children_user + times.children_system
        return Clock(time.perf_counter(), _busy(), own)

    def foreign(self, since: "Clock") -> float | None:
        """Share of the machine's processor time that others took since then, hypervisors' steal included."""
        if self.busy is None or since.busy is None:
            return None
        whole = (self.wall - since.wall) * (os.cpu_count() or 1)
        others = (self.busy - since.busy) - (self.own - since.own)
        return min(1.0, max(0.0, others / whole)) if whole > 0 else None


def _busy(path: Path = Path("/proc/stat")) -> float | None:
    try:
        words = path.read_text(encoding="ascii").split("\n", 1)[0].split()
    except OSError:
        return None
    # cpu user nice system idle iowait irq softirq steal ...; guest time is inside user.
    ticks = [int(word) for word in words[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0


def _gpu() -> str:
    # Only where a model has loaded torch already: asking must not cost an import.
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return ""
    return str(torch.cuda.get_device_name(0))
