"""Random models of a shape in every peer's own format, made once and kept in a folder.

Weights are rounded to bfloat16 before anything is written, so that all formats start from the same numbers. Speed does
not depend on them, and nothing has to be fetched.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .shapes import SHAPES, Shape


def home() -> Path:
    """Where models are kept: $STENO_BENCH, or a folder of the user's cache."""
    named = os.environ.get("STENO_BENCH")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "steno" / "bench"


def hf_folder(name: str, root: Path | None = None) -> Path:
    """The Hugging Face folder of a shape, in bfloat16."""
    return _once((root or home()) / name / "hf", lambda folder: _write_hf(folder, SHAPES[name]))


def gguf_file(name: str, kind: str, root: Path | None = None) -> Path:
    """The GGUF file of a shape with matrices of type `kind`."""
    base = root or home()
    source = hf_folder(name, base)

    def make(path: Path) -> None:
        from .gguf_file import write

        write(path, SHAPES[name], tensors(source), kind)

    return _once(base / name / f"{kind}.gguf", make)


def ct2_folder(name: str, root: Path | None = None) -> Path:
    """The CTranslate2 folder of a shape, in float32: its loader rounds to what is asked for."""
    base = root or home()
    source = hf_folder(name, base)

    def make(folder: Path) -> None:
        from ctranslate2.converters import TransformersConverter

        TransformersConverter(str(source)).convert(str(folder))

    return _once(base / name / "ct2", make)


def tensors(folder: Path) -> dict[str, np.ndarray]:
    """Tensors of a folder as float32."""
    from safetensors.torch import load_file

    return {k: t.float().numpy() for k, t in load_file(folder / "model.safetensors").items()}


def _once(path: Path, make: Callable[[Path], None]) -> Path:
    """Make `path` unless it is there; a run that is cut short leaves nothing that looks finished."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part-{os.getpid()}")
        try:
            make(part)
            part.rename(path)
        finally:
            if part.is_dir():
                shutil.rmtree(part)
            else:
                part.unlink(missing_ok=True)
    return path


def _write_hf(folder: Path, shape: Shape) -> None:
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    q, kv = shape.heads * shape.head_dim, shape.kv * shape.head_dim

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns) * 0.02).bfloat16()

    def norm() -> torch.Tensor:
        # Not all ones: a peer that forgot the norms has to be seen.
        return (1 + 0.1 * torch.randn(shape.hidden)).bfloat16()

    out = {"model.embed_tokens.weight": matrix(shape.vocab, shape.hidden), "model.norm.weight": norm()}
    for layer in range(shape.layers):
        base = f"model.layers.{layer}"
        out |= {
            f"{base}.input_layernorm.weight": norm(),
            f"{base}.self_attn.q_proj.weight": matrix(q, shape.hidden),
            f"{base}.self_attn.k_proj.weight": matrix(kv, shape.hidden),
            f"{base}.self_attn.v_proj.weight": matrix(kv, shape.hidden),
            f"{base}.self_attn.o_proj.weight": matrix(shape.hidden, q),
            f"{base}.post_attention_layernorm.weight": norm(),
            f"{base}.mlp.gate_proj.weight": matrix(shape.inner, shape.hidden),
            f"{base}.mlp.up_proj.weight": matrix(shape.inner, shape.hidden),
            f"{base}.mlp.down_proj.weight": matrix(shape.hidden, shape.inner),
        }
    folder.mkdir(parents=True)
    save_file(out, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=1), encoding="utf-8")
    _write_tokenizer(folder, shape.vocab)


def _write_tokenizer(folder: Path, size: int) -> None:
    """One word per id: converters ask for a tokenizer, the race uses ids only."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"t{i}": i for i in range(3, size)}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
