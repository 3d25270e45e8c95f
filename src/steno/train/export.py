"""The trained model as a Hugging Face folder with int8 matrices, in the compressed-tensors format.

Every matrix, the tied embedding among them, becomes int8 with one float32 scale per output channel (row), symmetric;
norms stay bfloat16. Scales are float32 so that what a loader restores in float32 is exactly what was measured: it
multiplies in the scale's own type. `dequantize` in the configuration makes stock transformers restore plain matrices
when it loads the folder: its other route cannot hold a quantised embedding.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor
from transformers import LlamaForCausalLM

from steno.core.errors import OutputError

SCHEME = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "dequantize": True,
    "config_groups": {
        "group_0": {
            "targets": ["Linear", "Embedding"],
            "weights": {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True, "dynamic": False},
            "input_activations": None,
            "output_activations": None,
        }
    },
    "ignore": ["lm_head"],
}


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Where a model folder's bytes are. `parts` splits the weight file; `files` is every file; they agree."""

    files: dict[str, int]
    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.files.values())


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[rows, columns] -> int8 of the same shape and float32 scales [rows, 1]."""
    scale = (weight.float().abs().amax(1, keepdim=True) / 127).clamp_min(1e-8)
    return torch.round(weight.float() / scale).clamp(-127, 127).to(torch.int8), scale


def stored(model: LlamaForCausalLM) -> dict[str, Tensor]:
    """The tensors of the weight file, by name; the tied head is not stored twice."""
    out: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        weight = value.detach().cpu()
        if name == "lm_head.weight":
            continue
        if weight.ndim == 2:
            out[name], out[name + "_scale"] = quantise(weight)
        else:
            out[name] = weight.to(torch.bfloat16)
    return out


def dequantised(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the stored tensors mean, as float32 matrices under the model's own names."""
    out = {n: t.float() for n, t in tensors.items() if t.dtype != torch.int8 and not n.endswith("_scale")}
    for name, values in tensors.items():
        if values.dtype == torch.int8:
            out[name] = values.float() * tensors[name + "_scale"]
    out["lm_head.weight"] = out["model.embed_tokens.weight"]
    return out


def export(model: LlamaForCausalLM, tokenizer: Path, out: Path) -> Ledger:
    """Write the folder, whole or not at all. Raises OutputError where it cannot be written."""
    temporary = out.with_name(out.name + ".part")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        (temporary / "model.safetensors").write_bytes(save(stored(model), metadata={"format": "pt"}))
        config = model.config.to_dict()
        config |= {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16", "use_cache": True}
        config["quantization_config"] = SCHEME
        config.pop("_name_or_path", None)
        (temporary / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        ends = {"bos_token_id": model.config.bos_token_id, "eos_token_id": model.config.eos_token_id}
        (temporary / "generation_config.json").write_text(json.dumps(ends) + "\n", encoding="utf-8")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(tokenizer / name, temporary / name)
        shutil.rmtree(out, ignore_errors=True)
        temporary.rename(out)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OutputError(
            f"Model folder {out}: cannot be written ({error.strerror}). Free space or choose another --out."
        ) from None
    return ledger(out)


def ledger(folder: Path) -> Ledger:
    """Count a model folder's bytes from the files themselves."""
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    parts: dict[str, int] = {"int8 matrices": 0, "scales": 0, "norms": 0}
    with open(folder / "model.safetensors", "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    for name, row in header.items():
        if name != "__metadata__":
            kind = "scales" if name.endswith("_scale") else "int8 matrices" if row["dtype"] == "I8" else "norms"
            parts[kind] += row["data_offsets"][1] - row["data_offsets"][0]
    parts["header"] = 8 + size
    return Ledger(files=files, parts=parts)
