"""A prefix cache: KV of text seen before, found by its content, so that a second prompt skips what it shares.

A text is cut into blocks of equally many tokens. The key of a block is a hash of the key before it and of its tokens;
the first hangs off the session's stamp (model, arithmetic, cache form; if pinned, the session's shape). So equal
keys mean equal tokens from the start on, under equal arithmetic, and where the session promises bits
(`Caps.chain_exact`) what is found is bit for bit what would have been computed.

A row without a cache form is stored block by block. One in a form is stored whole, every `whole_tokens`: what its tier
holds at a length is not a sum of blocks. Blocks used longest ago go first, from memory to disk, from disk for good;
damaged files are dropped and counted.

`Remembering` puts it to work.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from steno.core import Stretch
from steno.core.errors import DataError, ModelError
from steno.core.files import write_bytes

from ._store import pack, unpack


@dataclass(slots=True)
class Stats:
    """Tokens asked for and found, blocks that went from memory and from disk, and files that were damaged."""

    asked: int = 0
    found: int = 0
    spilled: int = 0
    dropped: int = 0
    damaged: int = 0


class PrefixCache:
    """Blocks by key. `memory_bytes` and `disk_bytes` bound what is held; without `folder` nothing goes to disk.

    What stands in `folder` is found again by another process. `close` writes what is in memory there.
    """

    def __init__(
        self, memory_bytes: int, *, folder: Path | None = None, disk_bytes: int = 0, block: int = 64,
        whole_tokens: int = 256,
    ) -> None:  # fmt: skip
        if block < 1 or whole_tokens < block or whole_tokens % block:
            raise ValueError(
                f"whole_tokens ({whole_tokens}) must be a multiple of block ({block}), which is at least 1"
            )
        self.memory_bytes, self.folder, self.disk_bytes = memory_bytes, folder, disk_bytes
        self.block, self.whole_tokens = block, whole_tokens
        self.stats = Stats()
        self._held: OrderedDict[str, tuple[Stretch, str, tuple[int, ...]]] = OrderedDict()
        self._files: OrderedDict[str, int] = OrderedDict()
        self._held_bytes = self._file_bytes = 0
        if folder is not None:
            found = sorted(((p.stat().st_mtime_ns, p) for p in folder.glob("*.safetensors")), key=lambda pair: pair[0])
            for _, path in found:
                self._files[path.stem] = path.stat().st_size
            self._file_bytes = sum(self._files.values())
            self._trim_files()

    @property
    def held_bytes(self) -> dict[str, int]:
        """Bytes in memory and on disk."""
        return {"memory": self._held_bytes, "disk": self._file_bytes}

    def __contains__(self, key: str) -> bool:
        return key in self._held or key in self._files

    def keys(self, stamp: str, ids: Sequence[int], size: int) -> list[str]:
        """The key of each whole block of `size` tokens."""
        key = hashlib.sha256(f"steno prefix 1 {size} {stamp}".encode()).digest()
        out: list[str] = []
        for start in range(0, len(ids) // size * size, size):
            key = hashlib.sha256(key + np.asarray(ids[start : start + size], np.int32).tobytes()).digest()
            out.append(key.hex())
        return out

    def get(self, key: str, stamp: str) -> Stretch | None:
        """What is held under a key; None too where its file is damaged, which is dropped."""
        held = self._held.get(key)
        if held is not None:
            self._held.move_to_end(key)
            return held[0]
        if key not in self._files or self.folder is None:
            return None
        path = self._path(key)
        try:
            stretch, ids = unpack(path.read_bytes(), stamp)
        except (OSError, DataError, ModelError):
            self._file_bytes -= self._files.pop(key)
            path.unlink(missing_ok=True)
            self.stats.damaged += 1
            return None
        self._files.move_to_end(key)
        self._keep(key, stretch, stamp, ids)
        return stretch

    def put(self, key: str, stretch: Stretch, stamp: str, ids: Sequence[int]) -> None:
        """Hold the tokens `ids` of a stretch under a key."""
        if key not in self._held:
            self._keep(key, stretch, stamp, tuple(ids))

    def touch(self, keys: Sequence[str]) -> None:
        """Count the blocks of one text as used now, the first last: a block without those before it is of no use."""
        for key in reversed(keys):
            for pool in (self._held, self._files):
                if key in pool:
                    pool.move_to_end(key)

    def close(self) -> None:
        """Write to the folder what is in memory alone, as far as `disk_bytes` goes, and let go of it."""
        while self._held:
            self._spill()

    def _keep(self, key: str, stretch: Stretch, stamp: str, ids: tuple[int, ...]) -> None:
        self._held[key] = stretch, stamp, ids
        self._held_bytes += stretch.num_bytes
        while self._held_bytes > self.memory_bytes:
            self._spill()

    def _spill(self) -> None:
        key, (stretch, stamp, ids) = self._held.popitem(last=False)
        self._held_bytes -= stretch.num_bytes
        if self.folder is None:
            self.stats.dropped += 1
        elif key not in self._files:
            data = pack(stretch, stamp, ids)
            if len(data) > self.disk_bytes:
                self.stats.dropped += 1
                return
            write_bytes(self._path(key), data)
            self.stats.spilled += 1
            self._files[key] = len(data)
            self._file_bytes += len(data)
            self._trim_files()

    def _trim_files(self) -> None:
        while self._file_bytes > self.disk_bytes and self._files:
            key, size = self._files.popitem(last=False)
            self._file_bytes -= size
            self._path(key).unlink(missing_ok=True)
            self.stats.dropped += 1

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.safetensors"
