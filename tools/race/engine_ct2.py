"""CTranslate2: a generator keeps no state between calls, so a token's time is the difference of two lengths."""

import time
from collections.abc import Sequence
from pathlib import Path

import ctranslate2


class Translator:
    """Batched greedy generation of a fixed number of tokens. It cannot run a given chain: no widths."""

    def __init__(self, folder: Path, form: str, threads: int) -> None:
        self._generator = ctranslate2.Generator(
            str(folder), device="cpu", compute_type=form, inter_threads=1, intra_threads=threads
        )
        self.version = ctranslate2.__version__
        self.weight_bytes = 0
        self._rows = 1
        self._ids: list[str] = []

    def open(self, rows: int, capacity: int) -> None:
        self._rows = rows

    def kv_bytes(self) -> int:
        return 0

    def prefill(self, ids: Sequence[int]) -> float:
        # The converter's vocabulary: three named tokens, then one word per id.
        self._ids = [("<unk>", "<s>", "</s>")[i] if i < 3 else f"t{i}" for i in ids]
        return self._generate(1)

    def crop(self, length: int) -> None:
        self._ids = self._ids[:length]

    def decode(self, count: int) -> float:
        first = self._generate(1)
        return max(0.0, self._generate(count + 1) - first)

    def width(self, count: int) -> float:
        raise NotImplementedError("CTranslate2 does not score a given chain on top of a cache")

    def _generate(self, count: int) -> float:
        start = time.perf_counter()
        rows = self._generator.generate_batch(
            [self._ids] * self._rows,
            max_length=count,
            min_length=count,
            beam_size=1,
            sampling_topk=1,
            include_prompt_in_result=False,
        )
        seconds = time.perf_counter() - start
        if any(len(row.sequences_ids[0]) != count for row in rows):
            raise RuntimeError(f"CTranslate2 was asked for {count} tokens and gave another number")
        return seconds
