"""transformers in float32: its own model and cache, one forward per token, the best token read from its logits."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache


class Transformers:
    """A plain loop over `model(ids, past_key_values=...)`: less per token than `generate` does."""

    def __init__(self, folder: Path, threads: int) -> None:
        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(threads)
        self._model = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=torch.float32, local_files_only=True
        ).eval()
        self.version = transformers.__version__
        self._rows = 1

    @property
    def weight_bytes(self) -> int:
        return sum({p.data_ptr(): p.nbytes for p in self._model.parameters()}.values())

    def open(self, rows: int, capacity: int) -> None:
        self._rows = rows
        self._cache = DynamicCache()

    def kv_bytes(self) -> int:
        return 0

    @torch.inference_mode()
    def prefill(self, ids: Sequence[int]) -> float:
        self._cache = DynamicCache()
        start = time.perf_counter()
        self._token = self._step(torch.tensor([list(ids)] * self._rows), last=True)
        return time.perf_counter() - start

    def crop(self, length: int) -> None:
        # A negative number is that many tokens to remove; a positive one is refused by some versions.
        surplus = self._cache.get_seq_length() - length
        if surplus:
            self._cache.crop(-surplus)

    @torch.inference_mode()
    def decode(self, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            self._token = self._step(self._token)
        return time.perf_counter() - start

    @torch.inference_mode()
    def width(self, count: int) -> float:
        held = self._cache.get_seq_length()
        start = time.perf_counter()
        self._step(torch.arange(300, 300 + count)[None])
        seconds = time.perf_counter() - start
        self.crop(held)
        return seconds

    def _step(self, ids: torch.Tensor, *, last: bool = False) -> torch.Tensor:
        out = self._model(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1 if last else 0)
        return out.logits.argmax(-1)[:, -1:]
