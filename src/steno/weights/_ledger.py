"""Where the bytes of a model folder are, tensor by tensor. The lines of a file sum to its size, header included.

Parts: `payload` (integers), `scales`, `shapes`, `factors` (low rank), `bias` (of factored layers), `untouched` (stored
as before), `header` (the safetensors header with its length). The folder's other files (configuration, tokenizer, code)
are one number; the ledger itself is not in it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from steno.core.errors import DataError

NAME = "steno_ledger.json"

METADATA = ("payload", "scales", "shapes", "factors", "bias")
"""Parts that exist because weights were compressed: together they are what the compressed weights cost."""


@dataclass(frozen=True, slots=True)
class Line:
    """One tensor of one file, or a file's header."""

    file: str
    tensor: str
    part: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Layer:
    """One compressed matrix: what it became, and the relative error ||W - W'|| / ||W||, or of its outputs."""

    name: str
    weights: int
    form: str
    error: float


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The ledger of a folder. `parameters` counts the floats of the source, tied ones once."""

    method: str
    lines: tuple[Line, ...]
    layers: tuple[Layer, ...]
    parameters: int
    source_bytes: int
    other_bytes: int

    @property
    def total_bytes(self) -> int:
        """Bytes of all safetensors files."""
        return sum(line.bytes for line in self.lines)

    @property
    def compressed_weights(self) -> int:
        return sum(layer.weights for layer in self.layers)

    @property
    def bits_per_weight(self) -> float:
        """Bits per compressed weight with all its scales, shapes and factors; the header is in `bits_per_parameter`."""
        spent = sum(line.bytes for line in self.lines if line.part in METADATA)
        return 8 * spent / max(1, self.compressed_weights)

    @property
    def bits_per_parameter(self) -> float:
        """Bits of the safetensors files per parameter of the whole model."""
        return 8 * self.total_bytes / max(1, self.parameters)

    def parts(self) -> dict[str, int]:
        """Bytes by part."""
        out: dict[str, int] = {}
        for line in self.lines:
            out[line.part] = out.get(line.part, 0) + line.bytes
        return dict(sorted(out.items()))

    def files(self) -> dict[str, int]:
        """Bytes by safetensors file."""
        out: dict[str, int] = {}
        for line in self.lines:
            out[line.file] = out.get(line.file, 0) + line.bytes
        return out

    def to_json(self) -> str:
        """The text of `steno_ledger.json`."""
        totals: Mapping[str, object] = {
            "steno": 1,
            "method": self.method,
            "total_bytes": self.total_bytes,
            "source_bytes": self.source_bytes,
            "other_bytes": self.other_bytes,
            "parameters": self.parameters,
            "compressed_weights": self.compressed_weights,
            "bits_per_weight": round(self.bits_per_weight, 6),
            "bits_per_parameter": round(self.bits_per_parameter, 6),
            "parts": self.parts(),
            "files": self.files(),
        }
        rows = {"layers": [asdict(x) for x in self.layers], "lines": [asdict(x) for x in self.lines]}
        return json.dumps({**totals, **rows}, indent=1) + "\n"

    @staticmethod
    def read(folder: Path) -> "Ledger":
        """The ledger of `folder`. Raises DataError where there is none, or where it is damaged."""
        try:
            data = json.loads((folder / NAME).read_text(encoding="utf-8"))
            return Ledger(
                method=data["method"],
                lines=tuple(Line(**row) for row in data["lines"]),
                layers=tuple(Layer(**row) for row in data["layers"]),
                parameters=data["parameters"],
                source_bytes=data["source_bytes"],
                other_bytes=data["other_bytes"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder / NAME} cannot be read: {error}. Compress the model again.") from None
