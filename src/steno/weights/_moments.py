"""What a linear layer's inputs look like on calibration text: their mean and second moment, from forward hooks.

Layers that are handed the very same tensor (query, key and value; gate and up) share one accumulator. Accumulators of
a pass are bounded in memory; with more layers than fit, the text is run again for the next ones.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from steno.core.errors import MissingExtra, ModelError, PromptError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

PASS_BYTES = 1 << 30
"""Bytes of float64 accumulators in one pass over the text."""


@dataclass(slots=True)
class Moments:
    """Sums over `count` inputs x [K]: of x, and of x x^T [K, K], in float64."""

    count: int
    first: "Tensor"
    second: "Tensor"

    def covariance(self, center: bool) -> "tuple[Tensor, Tensor]":
        """Mean [K] (zeros without `center`) and the second moment about it [K, K]."""
        import torch

        mean = self.first / max(1, self.count) if center else torch.zeros_like(self.first)
        return mean, self.second / max(1, self.count) - torch.outer(mean, mean)


def collect(
    folder: Path, names: Sequence[str], texts: Sequence[Sequence[int]], say: Callable[[str, int, int], None]
) -> Iterator[tuple[str, Moments]]:
    """Moments of the inputs of each linear module of `names`, in groups that fit the memory of a pass.

    Raises ModelError where the model cannot be run or its activations are not finite, PromptError for unusable texts.
    """
    import torch

    net = _load(folder)
    rows = cast("nn.Embedding", net.get_input_embeddings()).num_embeddings
    _check(texts, rows, getattr(net.config, "max_position_embeddings", None))
    passes = _passes(net, names)
    for number, chunk in enumerate(passes):
        found: dict[str, Moments] = {}
        alias: dict[str, str] = {}
        last: list[tuple[str, Tensor]] = []
        handles = [net.get_submodule(name).register_forward_pre_hook(_hook(name, found, alias, last)) for name in chunk]
        try:
            with torch.no_grad():
                for index, ids in enumerate(texts):
                    say("calibrating", number * len(texts) + index, len(passes) * len(texts))
                    last.clear()
                    net(torch.tensor([list(ids)]), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        last.clear()
        for name in chunk:
            moments = found.get(alias.get(name, name))
            if moments is None:
                continue
            if not bool(torch.isfinite(moments.second).all()):
                raise ModelError(f"{folder}: the inputs of {name} are NaN or infinite on the calibration text.")
            yield name, moments


def _hook(
    name: str, found: dict[str, Moments], alias: dict[str, str], last: "list[tuple[str, Tensor]]"
) -> "Callable[[nn.Module, tuple[Tensor, ...]], None]":
    def hook(module: "nn.Module", inputs: "tuple[Tensor, ...]") -> None:
        x = inputs[0]
        if name not in found and last and last[0][1] is x:
            alias[name] = last[0][0]
            return
        assert name not in alias, f"{name} shares its input on some texts only"
        rows = x.reshape(-1, x.shape[-1]).double()
        if name not in found:
            found[name] = Moments(0, rows.new_zeros(rows.shape[1]), rows.new_zeros(rows.shape[1], rows.shape[1]))
        moments = found[name]
        moments.count += len(rows)
        moments.first += rows.sum(0)
        moments.second.addmm_(rows.T, rows)
        last[:] = [(name, x)]

    return hook


def _passes(net: "nn.Module", names: Sequence[str]) -> list[list[str]]:
    out: list[list[str]] = [[]]
    used = 0
    for name in names:
        size = 8 * cast("nn.Linear", net.get_submodule(name)).in_features ** 2
        if out[-1] and used + size > PASS_BYTES:
            out.append([])
            used = 0
        out[-1].append(name)
        used += size
    return out


def _load(folder: Path) -> "PreTrainedModel":
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ModuleNotFoundError as error:
        raise MissingExtra("calibration", error.name or "torch", "hf") from None
    try:
        # float32: sums of squares of half-precision activations would be theirs, not the model's.
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    except ImportError as error:
        raise MissingExtra(f"calibration of {folder.name}", str(error).split()[0], "hf") from None
    except (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ModelError(f"{folder}: transformers cannot load this model ({reason}).") from None


def _check(texts: Sequence[Sequence[int]], vocab: int, context: int | None) -> None:
    for number, ids in enumerate(texts, 1):
        if len(ids) == 0:
            raise PromptError(f"calibration text {number} is empty. Leave it out.")
        if min(ids) < 0 or max(ids) >= vocab:
            raise PromptError(
                f"calibration text {number} has token ids outside the model's {vocab}. Use the model's own tokenizer."
            )
        if context and len(ids) > context:
            raise PromptError(
                f"calibration text {number} has {len(ids)} tokens, the model's context is {context}. Cut it up."
            )
