"""The roofline: the least time in which this machine can read given bytes with all threads.

Measured with a loop that does nothing but read (`read.c`); neither other strides nor prefetching changes what it
reaches. The buffer is as large as the weights, in huge pages where the system gives them, and every thread reads its
own part again and again, so starting threads does not count. Weights that fit the caches are read from the caches, here
as there: that is what a decoder can at best do. The same over a buffer far beyond the caches is reported beside it.
"""

import ctypes
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

FAR = 1 << 30
"""Bytes that no cache share of a rented core holds."""

HUGE = 1 << 21

WINDOW_S = 0.2


class Roofline:
    """Reads a buffer of `size` bytes with `threads` threads."""

    def __init__(self, size: int, threads: int) -> None:
        self.part = max(4096, -(-size // threads // 4096) * 4096)
        self.size = self.part * threads
        self.threads = threads
        # Private memory: the system gives no huge pages to shared one, which is what mmap takes by itself.
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._memory = mmap.mmap(-1, self.size + HUGE, flags=private)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        raw = np.frombuffer(self._memory, np.uint8)
        whole = raw[-raw.ctypes.data % HUGE :][: self.size]
        whole[:] = 1
        self._starts = [whole.ctypes.data + i * self.part for i in range(threads)]
        self._read = library()
        self._pool = ThreadPoolExecutor(threads)

    def seconds(self, window: float = WINDOW_S) -> float:
        """Seconds to read the buffer once, a mean over about `window` seconds."""
        laps = max(1, round(window / self._pass(1)))
        return self._pass(laps) / laps

    def _pass(self, laps: int) -> float:
        start = time.perf_counter()
        list(self._pool.map(lambda at: self._read(at, self.part, laps), self._starts))
        return time.perf_counter() - start


def library() -> Callable[[int, int, int], int]:
    """`read_all`, built for this machine the first time. Raises RuntimeError without a C compiler."""
    from .models import home

    source = Path(__file__).with_name("read.c")
    out = home() / f"read-{int(source.stat().st_mtime)}.so"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        compiler = os.environ.get("CC", "cc")
        part = out.with_suffix(f".{os.getpid()}")
        command = [compiler, "-O3", "-march=native", "-shared", "-fPIC", str(source), "-o", str(part)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(getattr(error, "stderr", ""), file=sys.stderr)
            raise RuntimeError(f"the roofline needs a C compiler: {' '.join(command)} failed. Set CC.") from error
        part.rename(out)
    found = ctypes.CDLL(str(out)).read_all
    found.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    found.restype = ctypes.c_int64
    return found
