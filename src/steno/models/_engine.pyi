"""Types of the C++ engine (native/bind.cpp), which is private to `native.py`."""

from collections.abc import Sequence
from enum import Enum

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

MAX_WIDTH: int
MAX_THREADS: int

def instruction_sets() -> list[str]: ...
def insist_on_threads(always: bool, /) -> None: ...
def gumbel(key: Sequence[int], count: int) -> Floats: ...
def draw(key: Sequence[int], logits: Floats) -> int: ...

class Part(Enum):
    QKV = 0
    OUT = 1
    GATE_UP = 2
    DOWN = 3
    HEAD = 4

class Norm(Enum):
    IN = 0
    MID = 1
    Q = 2
    K = 3
    OUT = 4

class Kind(Enum):
    F32 = 0
    BF16 = 1
    I8 = 2
    I4 = 3

class Embedding(Enum):
    IN_HEAD = 0
    F32 = 1
    BF16 = 2
    F16 = 3

class Model:
    def __init__(
        self,
        *,
        width: int,
        layers: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        inner: int,
        vocab: int,
        context: int,
        norm_eps: float,
        kind: Kind,
        head_kind: Kind,
        group: int,
        embedding: Embedding,
        qkv_bias: bool,
        out_bias: bool,
        mlp_bias: bool,
        qk_norm: bool,
        windows: Sequence[int],
        rotary: Sequence[int],
        frequency: Sequence[float],
        threads: int,
        packed: str,
        key: str,
    ) -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def gate_rows(self) -> int: ...
    def put_floats(self, part: Part, layer: int, row: int, values: Floats, /) -> None: ...
    def put_bytes(self, part: Part, layer: int, row: int, values: npt.NDArray[np.int8], scales: Floats, /) -> None: ...
    def put_bias(self, part: Part, layer: int, row: int, values: Floats, /) -> None: ...
    def put_norm(self, norm: Norm, layer: int, values: Floats, /) -> None: ...
    def put_embedding(self, values: Floats, /) -> None: ...
    def put_nibbles(
        self, part: Part, layer: int, row: int, values: npt.NDArray[np.int8], scales: npt.NDArray[np.uint16], /
    ) -> None: ...
    def put_embedding_half(self, values: npt.NDArray[np.uint16], /) -> None: ...
    def save(self, path: str, key: str, /) -> None: ...
    @property
    def mapped(self) -> bool: ...
    def weights(self) -> npt.NDArray[np.uint8]: ...
    def ready(self) -> None: ...
    def embed(self, ids: Ints, /) -> Floats: ...
    def weight_bytes(self) -> int: ...

class Form:
    def __init__(
        self,
        *,
        residual: int,
        block: int,
        key_bits: int,
        value_bits: int,
        group: int,
        channels: int,
        sinks: int,
        window: int,
    ) -> None: ...
    def due(self, length: int, /) -> int: ...

class Session:
    def __init__(self, model: Model, rows: int, capacity: int, form: Form | None, poison: bool) -> None: ...
    @property
    def room(self) -> list[int]: ...
    @property
    def seals(self) -> bool: ...
    @property
    def windowed(self) -> bool: ...
    def kept(self, row: int, layer: int, /) -> tuple[Floats, Floats]: ...
    @property
    def serial(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def capacity(self) -> int: ...
    @property
    def lengths(self) -> tuple[int, ...]: ...
    def fork(self, rows: Sequence[int], /) -> Session: ...
    def prefill(self, prompts: Sequence[Sequence[int]], last: bool, /) -> Floats | None: ...
    def forward(
        self,
        tokens: object,
        parents: object,
        positions: object,
        visible: object,
        embeds: object,
        low: int,
        high: int,
        logits: bool,
        hidden: Sequence[int],
    ) -> None: ...
    def commit(self, paths: Sequence[Sequence[int]], /) -> None: ...
    def crop(self, lengths: Sequence[int], /) -> None: ...
    def logits(self) -> Floats: ...
    def best(self) -> Ints: ...
    def hidden(self, layer: int, /) -> Floats: ...
    def top(self, count: int, /) -> tuple[Ints, Floats]: ...
    def head(self, states: Floats, /) -> Floats: ...
    def cache_bytes(self) -> tuple[int, int, int, int]: ...
