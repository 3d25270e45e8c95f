"""What predicts: a model from a name, on one of the backends. Every backend is just another `core.Session`."""

from pathlib import Path

from steno.core import Model
from steno.core.errors import ModelError

from .base import ModelSpec

__all__ = ["NIB", "ModelSpec", "load", "locate"]

NIB = Path(__file__).parent / "nib"
"""Folder of the default model, which ships inside the package."""

NATIVE = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})
"""Architectures the native engine runs; it refuses what it does not know in detail."""


def load(spec: ModelSpec) -> Model:
    """Load a model. Raises ModelError where it is missing, damaged or unsupported; MissingExtra without torch."""
    if spec.source.startswith("table:") or spec.backend == "table":
        from .table import load as load_table

        return load_table(spec)
    folder = locate(spec.source)
    backend = spec.backend
    if backend == "auto":
        backend = "native" if _architecture(folder) in NATIVE and spec.device != "cuda" and not spec.pinned else "hf"
    if backend == "native":
        from . import native

        return native.load(folder, weights=spec.weights, threads=spec.threads or None)
    from . import hf

    return hf.load(folder, spec)


def locate(source: str) -> Path:
    """The folder of a model: `nib`, a folder, or a hub id (downloaded, or found in the hub's cache when offline)."""
    if source == "nib":
        if not (NIB / "config.json").exists():
            raise ModelError("this installation has no nib model. Reinstall steno, or name a model folder or hub id.")
        return NIB
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise ModelError(
                f"{folder} has no config.json, so it is not a model folder. Point at the folder that has it."
            )
        return folder
    if folder.exists():
        raise ModelError(f"{folder} is a file. Name the folder that holds config.json and the safetensors files.")
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise ModelError(f"there is no model folder {folder}. Name a folder, a hub id such as org/name, or nib.")
    return _download(source)


def _download(repo: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt"]))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"no folder and no hub model '{repo}' ({reason}). Check the name and the network.") from None


def _architecture(folder: Path) -> str:
    import json

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / 'config.json'} cannot be read: {error}. Fetch the model again.") from None
    names = config.get("architectures") or [""]
    return str(names[0])
