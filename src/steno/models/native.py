"""The C++ engine as a backend: Llama-family models on a CPU, bit-identical however a text is cut into steps.

Equal weights and ids give equal logits, bit for bit, for any query width, tree, batch mix, thread count and instruction
set (docs/decisions/0006-arithmetic.md). A whole forward is one native call without the interpreter lock.

Environment: `STENO_THREADS` compute threads, `STENO_ISA` the instruction set ("scalar", "avx2", "avx512",
"avx512vnni", "amx", "neon", "neondot"), `STENO_CACHE` the folder of packed weights (see `_packed`), `STENO_POISON=1`
fills memory that must not be read with NaN.
"""

import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from steno.core import Caps, Keeps, Nodes, Want
from steno.core.errors import CapsError, DataError, PromptError, UserError
from steno.core.stretch import Stretch
from steno.core.tier import CacheSpec, Rope

from ._config import Shape, read_shape
from ._engine import MAX_THREADS, MAX_WIDTH, Form
from ._engine import Model as Engine
from ._engine import Session as Rows
from ._fill import choose_form, embedding_form, fill
from ._fits import check_load, check_room, check_span
from ._origin import files_digest
from ._packed import keep, packed_file, packed_key
from .checkpoint import Checkpoint, read_json
from .golden import check_golden, recorded

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

ARITHMETIC = "steno native 2"
"""Name of the arithmetic; a change that may move one bit of any logit gets a new one."""


def load(path: str | Path, *, weights: str = "auto", threads: int | None = None) -> "NativeModel":
    """Load a Hugging Face folder.

    weights  one of `FORMS`; "auto": int4 where the checkpoint is, else int8. Whole numbers with scales are taken as the
             checkpoint has them where the form can hold them, everything else is rounded here
    threads  compute threads; None: `STENO_THREADS`, else all usable cores

    Raises ModelError where the model is missing, damaged or of another family; UserError for the other arguments.
    """
    checkpoint = Checkpoint(path)
    _ = checkpoint.quantization  # refuses other schemes before their tensors look merely misshapen
    shape = read_shape(checkpoint)
    form = choose_form(checkpoint, weights)
    key = packed_key(checkpoint, f"{ARITHMETIC}\n{form}\n{shape}")
    file = packed_file(key)
    engine = Engine(
        width=shape.width, layers=shape.layers, heads=shape.heads, kv_heads=shape.kv_heads, head_dim=shape.head_dim,
        inner=shape.inner, vocab=shape.vocab, context=shape.context, norm_eps=shape.norm_eps,
        kind=form.kind, head_kind=form.head, group=form.group, embedding=embedding_form(checkpoint, shape),
        qkv_bias=shape.qkv_bias, out_bias=shape.out_bias, mlp_bias=shape.mlp_bias, qk_norm=shape.qk_norm,
        windows=list(shape.windows), rotary=[1] * shape.layers, frequency=list(shape.frequency),
        threads=_count_threads(threads), packed=str(file or ""), key=key,
    )  # fmt: skip
    if not engine.mapped:
        fill(engine, checkpoint, shape, form)
        engine.ready()
        if file is not None:
            keep(engine, file, key)
    return NativeModel(engine, checkpoint.path, shape, form.name, _stops(checkpoint))


def self_test(model: "NativeModel") -> bool:
    """Whether this processor gives the bits that the model's folder records for its weights form; False: none recorded.

    Raises ModelError where they differ.
    """
    expected = recorded(model.path, ARITHMETIC, model.weights)
    if expected is None:
        return False
    check_golden(model, expected)
    return True


class NativeModel:
    """A loaded model; `open` binds it to rows. Implements `core.Model`."""

    backend = "native"

    def __init__(self, engine: Engine, path: Path, shape: Shape, weights: str, eos: frozenset[int]) -> None:
        self.engine = engine
        self.path = path
        self.shape = shape
        self.weights = weights
        self.eos = eos
        self.name = path.resolve().name
        self.vocab = shape.vocab
        self.context = shape.context
        self._fingerprint = ""

    @property
    def isa(self) -> str:
        """Instruction set in use."""
        return self.engine.isa

    @property
    def threads(self) -> int:
        return self.engine.threads

    @property
    def fingerprint(self) -> str:
        if not self._fingerprint:
            digest = hashlib.sha256(f"{ARITHMETIC}\n{self.weights}\n{self.shape}".encode())
            digest.update(self.engine.weights().data)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    @property
    def origin(self) -> str:
        return files_digest(self.path)

    def weight_bytes(self) -> int:
        return self.engine.weight_bytes()

    def open(self, batch: int, capacity: int, cache: CacheSpec | None = None) -> "NativeSession":
        poison = os.environ.get("STENO_POISON", "") not in ("", "0")
        capacity = min(capacity, self.context)
        rows = Rows(self.engine, batch, capacity, self._form(cache, capacity), poison)
        return NativeSession(self, rows, repr(cache))

    def _form(self, cache: CacheSpec | None, capacity: int) -> Form | None:
        """The form in the engine's words; None where all stays as it is."""
        if cache is None:
            return None
        layout = cache.layout(self.shape.head_dim)
        if layout is None:
            if cache.due(capacity):
                name = getattr(cache, "name", type(cache).__name__)
                raise CapsError(f"the native backend cannot keep a cache in the form {name}. Use --backend hf.")
            return None
        seals = cache.due(capacity) > 0
        return Form(
            residual=layout.residual, block=layout.block if seals else 0, key_bits=layout.key_bits,
            value_bits=layout.value_bits, group=layout.group, channels=layout.value_group, sinks=layout.sinks,
            window=layout.window,
        )  # fmt: skip


class NativeStep:
    """Outputs of one forward: views of the engine's memory, valid until the session's next forward."""

    __slots__ = ("_engine", "_serial")

    def __init__(self, engine: Rows, serial: int) -> None:
        self._engine = engine
        self._serial = serial

    def _live(self) -> Rows:
        if self._engine.serial != self._serial:
            raise ValueError("this step is over: its session has run another forward. Copy what has to live longer.")
        return self._engine

    @property
    def logits(self) -> Floats:
        return self._live().logits()

    @property
    def argmax(self) -> Ints:
        return self._live().best()

    def top(self, count: int) -> tuple[Ints, Floats]:
        return self._live().top(count)

    def hidden(self, layer: int) -> Floats:
        return self._live().hidden(layer)


class NativeSession:
    """A model bound to rows. Implements `core.Session`."""

    __slots__ = ("_engine", "_form", "capacity", "caps", "model", "vocab")

    def __init__(self, model: NativeModel, engine: Rows, form: str) -> None:
        self.model, self._form = model, form
        self.vocab = model.vocab
        self.capacity = engine.capacity
        self._engine = engine
        self.caps = Caps(
            tree=True, crop=not engine.seals, fork=True, embeds=True, hidden=True, layers=True,
            visible=not engine.windowed, recurrent=False, num_layers=model.shape.layers, max_width=MAX_WIDTH,
            context=self.capacity, chain_exact=Keeps.BITS, tree_exact=Keeps.BITS,
        )  # fmt: skip

    @property
    def lengths(self) -> tuple[int, ...]:
        return self._engine.lengths

    def prefill(self, prompts: Sequence[Sequence[int]], *, last: bool = False) -> Floats | None:
        try:
            return self._engine.prefill(prompts, last)
        except TypeError:
            return self._engine.prefill([_ids(b, p) for b, p in enumerate(prompts)], last)

    def forward(self, nodes: Nodes, want: Want = Want()) -> NativeStep:
        low, high = nodes.layers or (0, -1)
        engine = self._engine
        arrays = nodes.tokens, nodes.parents, nodes.positions, nodes.visible, nodes.embeds
        try:
            engine.forward(*arrays, low, high, want.logits, want.hidden)
        except TypeError:
            engine.forward(*_tidy(nodes), low, high, want.logits, list(want.hidden))
        return NativeStep(engine, engine.serial)

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        try:
            self._engine.commit(paths)
        except TypeError:
            self._engine.commit([[int(i) for i in path] for path in paths])

    def crop(self, lengths: Sequence[int]) -> None:
        self._engine.crop([int(n) for n in lengths])

    def fork(self, rows: Sequence[int]) -> "NativeSession":
        return NativeSession(self.model, self._engine.fork([int(r) for r in rows]), self._form)

    def embed(self, tokens: Ints) -> Floats:
        ids = np.ascontiguousarray(tokens, dtype=np.int32)
        return self.model.engine.embed(ids.ravel()).reshape(*ids.shape, -1)

    def head(self, hidden: Floats) -> Floats:
        states = np.ascontiguousarray(hidden, dtype=np.float32)
        if states.ndim == 0 or states.shape[-1] != self.model.shape.width:
            raise ValueError(f"head: hidden has shape {list(states.shape)}, expected [..., {self.model.shape.width}]")
        return self._engine.head(states.reshape(-1, states.shape[-1])).reshape(*states.shape[:-1], self.vocab)

    @property
    def stamp(self) -> str:
        return f"{self.model.fingerprint} {self._form}"

    @property
    def whole(self) -> bool:
        return self._engine.seals

    @property
    def rope(self) -> Rope:
        return Rope(frequencies=self.model.shape.frequency)

    def save(self, row: int, start: int = 0, stop: int | None = None) -> Stretch:
        stop = check_span(self, row, start, stop)
        sealed = self._engine.sealed(row)
        # A form without codes drops tokens, save the first few: where those are, there is no number.
        coded = self._engine.codes(row)
        keys, values = self._floats(row, sealed if len(coded) else start, stop)
        arrays = {"codes": coded, "keys": keys, "values": values}
        return Stretch(start=start, stop=stop, arrays=arrays, meta={"sealed": sealed})

    def load(self, row: int, stretch: Stretch) -> None:
        check_load(self, row, stretch, self.capacity)
        try:
            codes, keys, values = (np.ascontiguousarray(stretch.arrays[n]) for n in ("codes", "keys", "values"))
            sealed = int(cast(int, stretch.meta["sealed"]))
            first = sealed if len(codes) else stretch.start
            if keys.shape[2] != stretch.stop - first:
                raise DataError("the stored tokens are not as many as they say")
            if len(codes):
                self._engine.restore(row, sealed, cast(npt.NDArray[np.uint8], codes))
            # Nobody sees a dropped token, but 0 times NaN is NaN.
            self._engine.append(row, *(np.nan_to_num(cast(Floats, x), nan=0.0) for x in (keys, values)))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(f"the stored tokens do not fit this session: {error}") from None

    def read(self, row: int, start: int = 0) -> tuple[Floats, Floats]:
        keys, values = self._floats(row, start, self.lengths[row])
        if np.isnan(keys).any():
            raise CapsError("this cache form does not hold every token in every head, so its tokens have no KV")
        return keys, values

    def append(self, row: int, keys: Floats, values: Floats) -> None:
        check_room(row, self.lengths[row], keys.shape[2], self.capacity)
        self._engine.append(row, *(np.ascontiguousarray(x, np.float32) for x in (keys, values)))

    def _floats(self, row: int, start: int, stop: int) -> tuple[Floats, Floats]:
        """Keys and values [L, G, T, D] of tokens [start, stop), NaN where one was dropped."""
        layers = [self._engine.kept(row, layer, start, stop) for layer in range(self.model.shape.layers)]
        return np.stack([k for k, _ in layers]), np.stack([v for _, v in layers])

    def room(self) -> tuple[int, ...]:
        return tuple(self._engine.room)

    def cache_bytes(self) -> dict[str, int]:
        """Bytes of live storages: `payload` and `scales` of sealed tokens, pages of `open` ones, and `staging`, the
        place of nodes under verification. Pages are counted whole, and once where rows share them.
        """
        return dict(zip(("payload", "scales", "open", "staging"), self._engine.cache_bytes(), strict=True))


def _stops(checkpoint: Checkpoint) -> frozenset[int]:
    """Ids that end a text: the generation config's, else the config's."""
    file = checkpoint.path / "generation_config.json"
    for record in (read_json(file) if file.exists() else {}, checkpoint.config):
        ids = record.get("eos_token_id")
        if ids is not None:
            return frozenset(int(i) for i in (ids if isinstance(ids, list) else [ids]))
    return frozenset()


def _count_threads(asked: int | None) -> int:
    if asked is None:
        text = os.environ.get("STENO_THREADS", "")
        if text and not text.isdecimal():
            raise UserError(
                f"STENO_THREADS: expected a whole number of threads, got {text!r}. Unset it to use all cores."
            )
        asked = int(text) if text else _usable_cores()
    if not 1 <= asked <= MAX_THREADS:
        raise UserError(f"threads: must be between 1 and {MAX_THREADS}, got {asked}.")
    return asked


def _usable_cores() -> int:
    """Cores this process may run on, and no more than its container's share of time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        pass
    return max(1, min(cores, MAX_THREADS))


def _ids(row: int, prompt: Sequence[int]) -> list[int]:
    try:
        ids = [int(i) for i in prompt]
    except (TypeError, ValueError):
        raise PromptError(f"row {row}: a prompt is a list of token ids, got {prompt!r:.80}") from None
    for i in ids:
        if not 0 <= i < 2**31:
            raise PromptError(f"row {row}: token id {i} is outside every vocabulary")
    return ids


def _tidy(nodes: Nodes) -> tuple[object, object, object, object, object]:
    """The arrays of `nodes` in the engine's types and layout. Raises ValueError where that would change a value."""

    def tidy(name: str, dims: int, dtype: type[np.generic]) -> object:
        given = getattr(nodes, name)
        if given is None:
            return None
        array = np.asarray(given)
        if array.ndim != dims:
            raise ValueError(f"nodes.{name}: expected {dims} dimensions, got shape {list(array.shape)}")
        whole = np.issubdtype(dtype, np.integer)
        if whole and not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"nodes.{name}: expected whole numbers (int32), got {array.dtype}")
        if dtype is np.bool_ and array.dtype != np.bool_:
            raise ValueError(f"nodes.{name}: expected bool, got {array.dtype}")
        if whole and array.size and (array.min() < -(2**31) or array.max() >= 2**31):
            raise ValueError(f"nodes.{name}: holds a value beyond 32 bits")
        return np.ascontiguousarray(array, dtype=dtype)

    if nodes.tokens is None or nodes.parents is None:
        raise ValueError("nodes: tokens and parents are both needed")
    return (
        tidy("tokens", 2, np.int32), tidy("parents", 2, np.int32), tidy("positions", 2, np.int32),
        tidy("visible", 3, np.bool_), tidy("embeds", 3, np.float32),
    )  # fmt: skip
