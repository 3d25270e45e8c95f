"""The C++ engine as a backend: Llama-family models on a CPU, bit-identical however a text is cut into steps.

Equal weights and ids give equal logits, bit for bit, for any query width, tree, batch mix, thread count and instruction
set (docs/decisions/0006-arithmetic.md). A whole forward is one native call without the interpreter lock.

Environment: `STENO_THREADS` compute threads, `STENO_ISA` the instruction set ("scalar", "avx2", "avx512",
"avx512vnni", "neon", "neondot"), `STENO_POISON=1` fills memory that must not be read with NaN.
"""

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from steno.core import Caps, Keeps, Nodes, Want
from steno.core.errors import CapsError, ModelError, PromptError, UserError, nearest
from steno.core.tier import CacheSpec

from ._engine import MAX_THREADS, MAX_WIDTH, Norm, Part
from ._engine import Model as Engine
from ._engine import Session as Rows
from .checkpoint import Checkpoint, Linear, read_json
from .golden import check_golden, recorded

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

ARITHMETIC = "steno native 1"
"""Name of the arithmetic; a change that may move one bit of any logit gets a new one."""

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
WEIGHTS = ("auto", "int8", "fp32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the config says of the network. `windows[l]` is 0 where layer l sees everything."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocab: int
    context: int
    norm_eps: float
    tied: bool
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    qk_norm: bool
    windows: tuple[int, ...]
    frequency: tuple[float, ...]


def load(path: str | Path, *, weights: str = "auto", threads: int | None = None) -> "NativeModel":
    """Load a Hugging Face folder.

    weights  "int8": whole numbers with one scale per row, as stored where the checkpoint has them, rounded here
             otherwise; "fp32": floats; "auto": int8
    threads  compute threads; None: `STENO_THREADS`, else all usable cores

    Raises ModelError where the model is missing, damaged or of another family; UserError for the other arguments.
    """
    if weights not in WEIGHTS:
        raise UserError(f"weights: the native backend has no form {weights!r}. {nearest(weights, WEIGHTS)}")
    checkpoint = Checkpoint(path)
    _ = checkpoint.quantization  # refuses other schemes before their tensors look merely misshapen
    shape = read_shape(checkpoint)
    int8 = weights != "fp32"
    engine = Engine(
        width=shape.width, layers=shape.layers, heads=shape.heads, kv_heads=shape.kv_heads, head_dim=shape.head_dim,
        inner=shape.inner, vocab=shape.vocab, context=shape.context, norm_eps=shape.norm_eps, tied=shape.tied,
        int8=int8, windows=list(shape.windows), rotary=[1] * shape.layers, frequency=list(shape.frequency),
        threads=_count_threads(threads),
    )  # fmt: skip
    _fill(engine, checkpoint, shape, int8)
    engine.ready()
    return NativeModel(engine, checkpoint.path, shape, "int8" if int8 else "fp32", _stops(checkpoint))


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
            for piece in self.engine.pieces():
                digest.update(piece.data)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def weight_bytes(self) -> int:
        return self.engine.weight_bytes()

    def open(self, batch: int, capacity: int, cache: CacheSpec | None = None) -> "NativeSession":
        if cache is not None and cache.due(self.context):
            raise CapsError("the native backend keeps its cache dense, in float32. Use --backend hf for a cache form.")
        poison = os.environ.get("STENO_POISON", "") not in ("", "0")
        return NativeSession(self, Rows(self.engine, batch, min(capacity, self.context), poison))


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

    __slots__ = ("_engine", "capacity", "caps", "model", "vocab")

    def __init__(self, model: NativeModel, engine: Rows) -> None:
        self.model = model
        self.vocab = model.vocab
        self.capacity = engine.capacity
        self._engine = engine
        self.caps = Caps(
            tree=True, crop=True, fork=True, embeds=True, hidden=True, layers=True,
            visible=not any(model.shape.windows), recurrent=False, max_width=MAX_WIDTH, context=self.capacity,
            chain_exact=Keeps.BITS, tree_exact=Keeps.BITS,
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
        return NativeSession(self.model, self._engine.fork([int(r) for r in rows]))

    def embed(self, tokens: Ints) -> Floats:
        ids = np.ascontiguousarray(tokens, dtype=np.int32)
        return self.model.engine.embed(ids.ravel()).reshape(*ids.shape, -1)

    def head(self, hidden: Floats) -> Floats:
        states = np.ascontiguousarray(hidden, dtype=np.float32)
        if states.ndim == 0 or states.shape[-1] != self.model.shape.width:
            raise ValueError(f"head: hidden has shape {list(states.shape)}, expected [..., {self.model.shape.width}]")
        return self._engine.head(states.reshape(-1, states.shape[-1])).reshape(*states.shape[:-1], self.vocab)

    def room(self) -> tuple[int, ...]:
        return tuple(self.capacity - n for n in self.lengths)

    def cache_bytes(self) -> dict[str, int]:
        return {"payload": self._engine.cache_bytes()}


def read_shape(checkpoint: Checkpoint) -> Shape:
    """The network a config describes. Raises ModelError where the engine cannot run it."""
    config, file = checkpoint.config, checkpoint.path / "config.json"
    names = config.get("architectures") or ["(none named)"]
    architecture = str(names[0]) if isinstance(names, list) else str(names)
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"{file}: the native backend cannot run {architecture}; it runs {', '.join(ARCHITECTURES)}. "
            f"Use --backend hf."
        )

    def refuse(key: str, value: object, why: str) -> ModelError:
        return ModelError(f"{file}: {key} is {value!r}: {why}. Use --backend hf.")

    def count(key: str, default: object = None) -> int:
        value = config.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ModelError(f"{file}: {key} is {value!r}, expected a positive whole number. Fetch the model again.")
        return value

    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise refuse("hidden_act", config["hidden_act"], "the native backend has silu only")
    width, layers, heads = count("hidden_size"), count("num_hidden_layers"), count("num_attention_heads")
    kv_heads, head_dim = count("num_key_value_heads", heads), count("head_dim", max(width // heads, 1))
    if heads % kv_heads:
        raise refuse("num_key_value_heads", kv_heads, f"it does not divide the {heads} query heads")
    if head_dim % 2 or head_dim > 1024:
        raise refuse("head_dim", head_dim, "the native backend has even head widths up to 1024")
    bias = bool(config.get("attention_bias", False))
    qwen2 = architecture == "Qwen2ForCausalLM"
    return Shape(
        width=width, layers=layers, heads=heads, kv_heads=kv_heads, head_dim=head_dim, inner=count("intermediate_size"),
        vocab=count("vocab_size"), context=count("max_position_embeddings", 2048),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        tied=bool(config.get("tie_word_embeddings", False)), qkv_bias=qwen2 or bias, out_bias=bias and not qwen2,
        mlp_bias=bool(config.get("mlp_bias", False)), qk_norm=architecture == "Qwen3ForCausalLM",
        windows=_windows(config, architecture, layers), frequency=_frequency(config, head_dim, refuse),
    )  # fmt: skip


def _windows(config: dict[str, Any], architecture: str, layers: int) -> tuple[int, ...]:
    """Sliding window per layer, 0 for none, by the rules of each architecture's config class."""
    window = config.get("sliding_window")
    if not isinstance(window, int) or architecture == "LlamaForCausalLM":
        return (0,) * layers
    if architecture == "MistralForCausalLM":
        return (window,) * layers
    if not config.get("use_sliding_window", False):
        return (0,) * layers
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == layers:
        return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    first = int(config.get("max_window_layers", 28))
    return tuple(window if layer >= first else 0 for layer in range(layers))


def _frequency(
    config: dict[str, Any], head_dim: int, refuse: Callable[[str, object, str], ModelError]
) -> tuple[float, ...]:
    """Rotary frequency [head_dim / 2] as float32 values.

    The powers are taken in decimal arithmetic, whose results the language fixes, and everything after is single IEEE
    operations in float32: the table is the same on every machine, which a maths library's pow is not.
    """
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = found if isinstance(found, dict) else {}
    kind = str(rope.get("rope_type", rope.get("type", "default")))
    if kind not in ("default", "linear", "llama3"):
        raise refuse("rope_type", kind, "the native backend has default, linear and llama3 rotary positions")
    for source in (config, rope):
        if source.get("partial_rotary_factor", 1.0) not in (None, 1.0):
            raise refuse(
                "partial_rotary_factor", source["partial_rotary_factor"], "the native backend rotates whole heads"
            )
    theta = float(rope.get("rope_theta", config.get("rope_theta", 10000.0)))
    with localcontext(prec=40):
        log = Decimal(theta).ln()
        powers = [
            float((Decimal(float(np.float32(2 * j) / np.float32(head_dim))) * log).exp()) for j in range(head_dim // 2)
        ]
    frequency = np.float32(1.0) / np.array(powers, np.float32)
    if kind == "linear":
        frequency = frequency / np.float32(rope["factor"])
    elif kind == "llama3":
        factor, low, high = (np.float32(rope[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
        old = np.float32(rope["original_max_position_embeddings"])
        waves = np.float32(2 * math.pi) / frequency
        blend = (old / waves - low) / (high - low)
        mixed = (np.float32(1) - blend) * frequency / factor + blend * frequency
        frequency = np.where(waves > old / low, frequency / factor, np.where(waves < old / high, frequency, mixed))
    return tuple(float(f) for f in frequency)


def _fill(engine: Engine, checkpoint: Checkpoint, shape: Shape, int8: bool) -> None:
    """Hand every tensor to the engine; what is left over is an error, because it would change the model."""

    def put(part: Part, layer: int, row: int, name: str, size: tuple[int, int], *, biased: bool = False) -> Linear:
        matrix = checkpoint.linear(f"{name}.weight", size)
        if int8 and matrix.ints is not None and matrix.scales is not None:
            engine.put_bytes(part, layer, row, np.ascontiguousarray(matrix.ints), matrix.scales)
        else:
            engine.put_floats(part, layer, row, np.ascontiguousarray(matrix.dense()))
        if biased:
            engine.put_bias(part, layer, row, checkpoint.floats(f"{name}.bias", size[:1]))
        return matrix

    width, q, kv = shape.width, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    for layer in range(shape.layers):
        base = f"model.layers.{layer}"
        row = 0
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            put(Part.QKV, layer, row, f"{base}.self_attn.{name}_proj", (rows, width), biased=shape.qkv_bias)
            row += rows
        put(Part.OUT, layer, 0, f"{base}.self_attn.o_proj", (width, q), biased=shape.out_bias)
        put(Part.GATE_UP, layer, 0, f"{base}.mlp.gate_proj", (shape.inner, width), biased=shape.mlp_bias)
        put(Part.GATE_UP, layer, engine.gate_rows, f"{base}.mlp.up_proj", (shape.inner, width), biased=shape.mlp_bias)
        put(Part.DOWN, layer, 0, f"{base}.mlp.down_proj", (width, shape.inner), biased=shape.mlp_bias)
        engine.put_norm(Norm.IN, layer, checkpoint.floats(f"{base}.input_layernorm.weight", (width,)))
        engine.put_norm(Norm.MID, layer, checkpoint.floats(f"{base}.post_attention_layernorm.weight", (width,)))
        if shape.qk_norm:
            engine.put_norm(Norm.Q, layer, checkpoint.floats(f"{base}.self_attn.q_norm.weight", (shape.head_dim,)))
            engine.put_norm(Norm.K, layer, checkpoint.floats(f"{base}.self_attn.k_norm.weight", (shape.head_dim,)))
    engine.put_norm(Norm.OUT, 0, checkpoint.floats("model.norm.weight", (width,)))

    table = "model.embed_tokens"
    name = table if shape.tied or not checkpoint.holds("lm_head.weight") else "lm_head"
    if name == table and not shape.tied:
        checkpoint.entry("lm_head.weight")
    head = put(Part.HEAD, 0, 0, name, (shape.vocab, width))
    # A tied embedding is read from the head's matrix, unless that had to be rounded.
    if not shape.tied or (int8 and head.ints is None):
        _embed(engine, checkpoint, f"{table}.weight", shape)
    known = ("rotary_emb.inv_freq", "_scale", "_zero_point", "_shape")
    checkpoint.skip(n for n in checkpoint.unread() if n.endswith(known) or (shape.tied and n == "lm_head.weight"))
    left = checkpoint.unread()
    if left:
        raise ModelError(
            f"{checkpoint.path}: the native backend has no place for tensor {left[0]}"
            f"{f' and {len(left) - 1} more' if len(left) > 1 else ''}. Use --backend hf."
        )


def _embed(engine: Engine, checkpoint: Checkpoint, name: str, shape: Shape) -> None:
    size = shape.vocab, shape.width
    dtype = checkpoint.entry(name).dtype if name in checkpoint else ""
    if dtype in ("F16", "BF16"):
        engine.put_embedding_half(checkpoint.halves(name, size), dtype == "BF16")
    else:
        engine.put_embedding(np.ascontiguousarray(checkpoint.linear(name, size).dense()))


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
