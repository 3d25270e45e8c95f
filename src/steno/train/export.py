"""The trained model as a Hugging Face folder with int8 matrices: `weights.rtn` over the stock folder.

Every matrix, the tied embedding among them, becomes int8 with one scale per output channel; norms stay float32. The
folder carries the ledger and the plan that made it.
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from steno.core.errors import OutputError
from steno.models.checkpoint import Checkpoint
from steno.train.model import build_like
from steno.weights.rtn import Rtn

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, kw_only=True)
class Size:
    """Where a model folder's bytes are. `parts` splits the weight file; `files` is every file; they agree."""

    files: dict[str, int]
    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.files.values())


def export(model: LlamaForCausalLM, tokenizer: Path, out: Path) -> Size:
    """Write the folder, whole or not at all. Raises OutputError where it cannot be written."""
    with tempfile.TemporaryDirectory(prefix="steno-export-") as scratch:
        stock = Path(scratch)
        copy = build_like(model)
        copy.load_state_dict({name: weight.detach().cpu().float() for name, weight in model.state_dict().items()})
        copy.config.use_cache = True
        try:
            copy.save_pretrained(stock)
            for name in TOKENIZER:
                shutil.copyfile(tokenizer / name, stock / name)
        except OSError as error:
            raise OutputError(
                f"Model folder {out}: cannot be written ({error.strerror}). Free space in /tmp."
            ) from None
        ledger = Rtn(embeddings=True).apply(stock, out, force=True)
    parts: dict[str, int] = {}
    for line in ledger.lines:
        parts[line.part] = parts.get(line.part, 0) + line.bytes
    files = {path.name: path.stat().st_size for path in sorted(out.iterdir()) if path.is_file()}
    return Size(files=files, parts=parts)


def meaning(folder: Path, model: LlamaForCausalLM) -> dict[str, Tensor]:
    """What an exported folder's tensors mean, as float32 under the names of `model`."""
    stored = Checkpoint(folder)
    out: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        source = name if stored.holds(name) or name in stored else "model.embed_tokens.weight"
        found = stored.linear(source, weight.shape).dense() if weight.ndim == 2 else stored.floats(source, weight.shape)
        out[name] = torch.from_numpy(found.copy())
    return out
