"""llama.cpp through its C API: batches made once, the best token read from its logits, as steno's are."""

import ctypes
import time
from collections.abc import Sequence
from pathlib import Path

import llama_cpp as api
import numpy as np


@api.llama_log_callback
def _silent(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    pass


class Llama:
    """A GGUF model. `flash` turns flash attention on, `repack` its interleaved and AMX weight layouts."""

    def __init__(self, file: Path, threads: int, *, flash: bool = True, repack: bool = True) -> None:
        api.llama_log_set(_silent, ctypes.c_void_p(0))
        api.llama_backend_init()
        settings = api.llama_model_default_params()
        settings.n_gpu_layers = 0
        settings.use_extra_bufts = repack
        self._model = api.llama_model_load_from_file(str(file).encode(), settings)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {file}")
        self.version = api.llama_print_system_info().decode()
        self._threads = threads
        self._flash = flash
        self._vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        self._context = None
        self._rows = 0
        self._length = 0

    @property
    def weight_bytes(self) -> int:
        return int(api.llama_model_size(self._model))

    def open(self, rows: int, capacity: int) -> None:
        if self._context is not None:
            api.llama_free(self._context)
            api.llama_batch_free(self._batch)
        settings = api.llama_context_default_params()
        # Each sequence has its own stretch of the context; 256 is the step in which llama.cpp pads it.
        settings.n_ctx = rows * (-(-capacity // 256) * 256)
        settings.n_batch = 2048
        settings.n_ubatch = 512
        settings.n_seq_max = rows
        settings.n_threads = settings.n_threads_batch = self._threads
        settings.flash_attn_type = 1 if self._flash else 0
        settings.no_perf = True
        self._context = api.llama_init_from_model(self._model, settings)
        if not self._context:
            raise RuntimeError("llama.cpp cannot open a context")
        self._memory = api.llama_get_memory(self._context)
        self._batch = api.llama_batch_init(settings.n_batch, 0, 1)
        self._rows = rows
        self._capacity = settings.n_ctx
        self._length = 0
        self._token = [0] * rows

    def kv_bytes(self) -> int:
        layers, kv = api.llama_model_n_layer(self._model), api.llama_model_n_head_kv(self._model)
        size = api.llama_model_n_embd(self._model) // api.llama_model_n_head(self._model)
        return 2 * 2 * layers * kv * size * self._capacity

    def run(self, tokens: Sequence[int], at: int, row: int = 0, *, every: bool = False) -> None:
        """Run a chain of tokens at positions `at`, ...; `every` asks for the logits of all."""
        batch, count = self._batch, len(tokens)
        batch.n_tokens = count
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, at + i, 1
            batch.seq_id[i][0] = row
            batch.logits[i] = every or i == count - 1
        self._decode()

    def best(self, index: int) -> int:
        """The best token after the batch's token `index`."""
        logits = api.llama_get_logits_ith(self._context, index)
        return int(np.ctypeslib.as_array(logits, (self._vocab,)).argmax())

    def remove(self, start: int, row: int = 0) -> None:
        """Forget a row's tokens from position `start`."""
        api.llama_memory_seq_rm(self._memory, row, start, -1)

    def prefill(self, ids: Sequence[int]) -> float:
        api.llama_memory_clear(self._memory, True)
        start = time.perf_counter()
        for row in range(self._rows):
            for at in range(0, len(ids), 2048):
                self.run(ids[at : at + 2048], at, row)
            self._token[row] = self.best(-1)
        self._length = len(ids)
        return time.perf_counter() - start

    def crop(self, length: int) -> None:
        for row in range(self._rows):
            self.remove(length, row)
        self._length = length

    def decode(self, count: int) -> float:
        start = time.perf_counter()
        if self._rows == 1:
            for _ in range(count):
                self.run(self._token, self._length)
                self._token[0] = self.best(0)
                self._length += 1
        else:
            batch = self._batch
            for _ in range(count):
                batch.n_tokens = self._rows
                for row, token in enumerate(self._token):
                    batch.token[row], batch.pos[row], batch.n_seq_id[row] = token, self._length, 1
                    batch.seq_id[row][0] = row
                    batch.logits[row] = True
                self._decode()
                self._token = [self.best(row) for row in range(self._rows)]
                self._length += 1
        return time.perf_counter() - start

    def width(self, count: int) -> float:
        start = time.perf_counter()
        self.run(range(300, 300 + count), self._length, every=True)
        for i in range(count):
            self.best(i)
        seconds = time.perf_counter() - start
        self.remove(self._length)
        return seconds

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """[T, V] of a prompt, to compare engines."""
        self.open(1, len(ids))
        self.run(ids, 0, every=True)
        rows = [api.llama_get_logits_ith(self._context, i) for i in range(len(ids))]
        return np.stack([np.ctypeslib.as_array(row, (self._vocab,)).copy() for row in rows])

    def _decode(self) -> None:
        status = api.llama_decode(self._context, self._batch)
        if status:
            raise RuntimeError(f"llama_decode failed with {status}")
