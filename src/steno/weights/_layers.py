"""Which tensors of a checkpoint are weights of linear layers: what a method of this room may replace.

The architectures of the native engine are known by name. Of any other, transformers is asked: the model is built
without memory (the meta device) and its modules looked at, because a matrix need not be a linear layer (GPT-2's Conv1D
is transposed, routers and experts of a mixture are bare parameters).
"""

import re
from dataclasses import dataclass

from steno.core.errors import MissingExtra, ModelError
from steno.models import NATIVE
from steno.models.checkpoint import Checkpoint

_EXPERT = re.compile(r".*\.experts\.\d+\..*\.weight")
_PROJECTION = re.compile(r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight")


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Weight names.

    linear     layers of the blocks, in order
    head       "" where it is tied to the embedding
    experts    matrices of a mixture: each its own tensor in the checkpoint, but no module of its own in transformers
    other      linear modules whose weights are not in the checkpoint under their own name, or are no block's
    """

    linear: tuple[str, ...]
    head: str
    embedding: str
    experts: tuple[str, ...] = ()
    other: tuple[str, ...] = ()


def layers(source: Checkpoint) -> Layers:
    """The linear layers of `source`. Raises ModelError where there are none."""
    names = source.config.get("architectures")
    architecture = str(names[0]) if isinstance(names, list) and names else ""
    found = _by_name(source) if architecture in NATIVE else _by_module(source)
    if not found.linear:
        raise ModelError(
            f"{source.path}: {architecture or 'this model'} has no linear layers that can be compressed (GPT-2 and "
            f"its like keep Conv1D layers, which no quantised format holds). Use a Llama-like model."
        )
    return found


def shape(source: Checkpoint, name: str) -> tuple[int, int]:
    """Rows and columns of the weight `name`, in whatever form it is stored."""
    stored = source.raw(f"{name}_shape") if f"{name}_packed" in source.entries else source.entry(name).shape
    if len(stored) != 2:
        raise ModelError(f"{source.path}: {name} has shape {list(stored)}, expected a matrix. Fetch the model again.")
    return int(stored[0]), int(stored[1])


def stored_bits(source: Checkpoint) -> int:
    """The least bits per weight the checkpoint's scheme names; 16 or more means floats."""
    groups = (source.quantization or {}).get("config_groups")
    schemes = [g.get("weights") for g in groups.values()] if isinstance(groups, dict) else []
    return min((int(s.get("num_bits", 8)) for s in schemes if s), default=16)


def _by_name(source: Checkpoint) -> Layers:
    names = [n.removesuffix("_packed") for n in source.entries if n.endswith((".weight", ".weight_packed"))]
    head = "lm_head.weight" if "lm_head.weight" in names and not source.config.get("tie_word_embeddings") else ""
    linear = tuple(sorted((n for n in names if _PROJECTION.fullmatch(n)), key=_natural))
    return Layers(linear=linear, head=head, embedding="model.embed_tokens.weight", other=() if head else ("lm_head",))


def _by_module(source: Checkpoint) -> Layers:
    try:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM
    except ModuleNotFoundError as error:
        raise MissingExtra("compressing this architecture", error.name or "torch", "hf") from None
    try:
        config = AutoConfig.from_pretrained(source.path, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{source.path}: transformers cannot build this model ({reason}).") from None
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    where = {id(module): name for name, module in model.named_modules()}
    tied = head is None or head.weight is embedding.weight or not source.holds(f"{where[id(head)]}.weight")
    linear, other = [], []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            kept = module is not head and source.holds(f"{name}.weight")
            (linear if kept else other).append(f"{name}.weight" if kept else name)
    if head is not None and not tied:
        other.remove(where[id(head)])
    weights = {n.removesuffix("_packed") for n in source.entries if n.endswith((".weight", ".weight_packed"))}
    experts = [n for n in weights if _EXPERT.fullmatch(n)]
    return Layers(
        linear=tuple(sorted(linear, key=_natural)),
        experts=tuple(sorted(set(experts) - set(linear), key=_natural)),
        head="" if head is None or tied else f"{where[id(head)]}.weight",
        embedding=f"{where[id(embedding)]}.weight",
        other=tuple(other),
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """Layer 10 after layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
