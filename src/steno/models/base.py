"""The room's one record: which model, on which backend, in which arithmetic. Protocols: `core.Model`, `core.Session`.

Backends: `native` (the C++ engine, Llama family), `hf` (any transformers causal LM), `table` (scripted, for tests).
"""

from dataclasses import dataclass

from steno.core.errors import UserError, nearest

BACKENDS = ("auto", "native", "hf", "table")
WEIGHTS = ("auto", "fp32", "bf16", "int8", "int4", "int4-64", "int4-128")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What to load. Equal specs load equal models.

    source   Hugging Face folder or hub id, `nib` (ships with the package), or `table:VOCAB:SEED`
    backend  "auto" takes native where the architecture allows it, else hf
    weights  number form of the weights while running; "auto": int8 on native, the file's own on hf
    threads  compute threads; 0: all usable cores
    device   hf only: "auto", "cpu", "cuda"
    pinned   hf only: fixed query width and KV length, bit-equal between plain and speculative decoding
    width    hf only: the pinned query width
    """

    source: str
    backend: str = "auto"
    weights: str = "auto"
    threads: int = 0
    device: str = "auto"
    pinned: bool = False
    width: int = 16

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise UserError(f"there is no backend '{self.backend}'. {nearest(self.backend, BACKENDS)}")
        if self.weights not in WEIGHTS:
            raise UserError(f"there is no weight form '{self.weights}'. {nearest(self.weights, WEIGHTS)}")
        if not 1 <= self.width <= 256:
            raise UserError(f"pinned width must be between 1 and 256 nodes, got {self.width}")
