"""Any transformers causal LM, unmodified, on CPU or GPU.

The door of the backend: what can be told from the files is checked here, without torch, and said in one sentence.
Behind it: `_model` (the model, probed against its own forward), `_session` over `_slots` and `_sight` (attention
models, pinned mode, cache forms), `_recurrent` (Mamba and hybrids), `_step` (outputs).

Nothing is fetched: `models.locate` has found the folder, and transformers is told to stay offline. Code that a
repository brings along is not run.
"""

import json
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from struct import unpack
from typing import TYPE_CHECKING, cast

from steno.core.errors import MissingExtra, ModelError

from .base import ModelSpec
from .lowrank import is_low_rank, resolve

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ._model import HFModel

Json = dict[str, object]

LARGEST_HEADER = 100 << 20
"""Bytes; the safetensors format's own limit."""


def load(folder: Path, spec: ModelSpec) -> "HFModel":
    """The model in `folder`. Raises ModelError for what is damaged or unsupported, MissingExtra without torch."""
    config = _read_json(folder / "config.json")
    shards = _shards(folder)
    for shard in shards:
        _check_shard(shard)
    for module in ("torch", "transformers"):
        if find_spec(module) is None:
            raise MissingExtra("the hf backend", module, "hf")
    scheme = config.get("quantization_config")
    method = cast(Json, scheme).get("quant_method") if isinstance(scheme, dict) else None
    if method == "compressed-tensors" and find_spec("compressed_tensors") is None:
        raise MissingExtra(f"the quantised model {folder.name}", "compressed-tensors", "hf")
    return _load(folder, spec, config)


def _load(folder: Path, spec: ModelSpec, config: Json) -> "HFModel":
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from ._model import HFModel, quiet

    names = cast(list[str], config.get("architectures") or [])
    known = {
        n
        for names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        for n in ([names] if isinstance(names, str) else names)
    }
    factored = is_low_rank(config)
    if not factored and "auto_map" in config and not known.intersection(names):
        raise ModelError(
            f"{folder.name} brings its own code, which steno does not run. Use an architecture of transformers."
        )
    if not factored and (not names or names[0] not in known):
        came = names[0] if names else "none"
        raise ModelError(
            f"config.json of {folder.name} names the architecture {came}, which is no causal language model"
        )
    if spec.weights.startswith("int"):
        raise ModelError(
            f"the hf backend has no {spec.weights} arithmetic of its own. "
            f"Use --backend native, or the knob weights.rtn."
        )
    if spec.device == "cuda" and not torch.cuda.is_available():
        raise ModelError("there is no CUDA device for device=cuda. Use device=cpu.")
    device = spec.device if spec.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if spec.threads:
        torch.set_num_threads(spec.threads)
    forms: dict[str, torch.dtype | str] = {"auto": "auto", "fp32": torch.float32, "bf16": torch.bfloat16}
    # Expert kernels that group tokens work on shapes that depend on the routing of the neighbours.
    pinned = {"experts_implementation": "batched_mm"} if spec.pinned else {}
    try:
        with quiet():
            if factored:
                settings, maker = resolve(config)
            else:
                settings, maker = AutoConfig.from_pretrained(folder, local_files_only=True), AutoModelForCausalLM
            loaded = cast(Callable[..., object], maker.from_pretrained)(
                folder, config=settings, dtype=forms[spec.weights], local_files_only=True, use_safetensors=True,
                output_loading_info=True, **pinned,
            )  # fmt: skip
    except ImportError as error:
        raise ModelError(f"{folder.name} needs a package that is not installed: {_first_line(error)}") from None
    except torch.cuda.OutOfMemoryError:
        raise ModelError(
            f"{folder.name} does not fit the memory of the device. Use device=cpu or fewer bits."
        ) from None
    except (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"transformers cannot load {folder.name}: {_first_line(error)}") from None
    net, report = cast(tuple["PreTrainedModel", dict[str, Iterable[str]]], loaded)
    lost = sorted([*report["missing_keys"], *(str(key[0]) for key in report["mismatched_keys"])])
    if lost:
        some = f"{lost[0]} and {len(lost) - 1} more" if len(lost) > 1 else lost[0]
        raise ModelError(
            f"the weight files of {folder.name} lack what config.json asks for: {some}. Fetch the model again."
        )
    for name, weight in net.named_parameters():
        if weight.is_floating_point() and weight.element_size() > 1 and not bool(torch.isfinite(weight).all()):
            raise ModelError(f"the weights of {folder.name} contain NaN or Inf, in {name}. Fetch the model again.")
    rows = int(cast("torch.Tensor", net.get_input_embeddings().weight).shape[0])
    if (size := _tokenizer_size(folder)) > rows:
        raise ModelError(
            f"the tokenizer of {folder.name} has {size} ids and the embedding only {rows}: they do not belong together"
        )
    net.eval().requires_grad_(False)
    net.to(torch.device(device))  # pyright: ignore[reportArgumentType]
    return HFModel(net, folder, spec.width if spec.pinned else 0)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _read_json(path: Path) -> Json:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {_first_line(error)}. Fetch the model again.") from None
    if not isinstance(data, dict):
        raise ModelError(f"{path} does not hold a JSON object. Fetch the model again.")
    return cast(Json, data)


def _shards(folder: Path) -> list[Path]:
    """The weight files: one, or those that the index names."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(cast(dict[str, str], _read_json(index).get("weight_map") or {}).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing or not names:
            what = missing[0] if missing else "all"
            raise ModelError(f"{folder.name} lacks weight files that its index names: {what}. Fetch the model again.")
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    if not single.is_file():
        other = next(iter(sorted(folder.glob("*.bin"))), None)
        hint = f"it has {other.name}, which may run code when read: convert it" if other else "fetch the model again"
        raise ModelError(f"{folder} has no model.safetensors ({hint}).")
    return [single]


def _check_shard(path: Path) -> None:
    """Raise ModelError where a safetensors file is cut short or is none: the header says how long it has to be."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, LARGEST_HEADER):
            raise ModelError(f"{path} is no complete safetensors file ({size} bytes). Fetch the model again.")
        try:
            header = cast(dict[str, Json], json.loads(file.read(length)))
            ends = [cast(list[int], entry["data_offsets"])[1] for key, entry in header.items() if key != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ModelError(f"the header of {path} is damaged. Fetch the model again.") from None
    if 8 + length + max(ends, default=0) != size:
        raise ModelError(
            f"{path} has {size} bytes, its header promises {8 + length + max(ends, default=0)}. Fetch it again."
        )


def _tokenizer_size(folder: Path) -> int:
    """One more than the highest id of tokenizer.json, 0 where there is none."""
    path = folder / "tokenizer.json"
    if not path.exists():
        return 0
    data = _read_json(path)
    vocab = cast(Json, data.get("model") or {}).get("vocab")
    ids = [cast(int, t["id"]) for t in cast(list[Json], data.get("added_tokens") or [])]
    if isinstance(vocab, dict):
        ids += cast(dict[str, int], vocab).values()
    elif isinstance(vocab, list):
        ids.append(len(cast(list[object], vocab)) - 1)
    return max(ids, default=-1) + 1
