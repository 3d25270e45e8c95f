"""Low rank by the features: each linear layer becomes two thin ones, chosen so that its outputs change least.

LoRD (atomic feature mimicking): with C the covariance of a layer's outputs on calibration text and V the eigenvectors
of its R largest eigenvalues, W becomes B A with B = V [N, R] and A = V^T W [R, K], and the bias becomes (I - V V^T)
E[y] + V V^T b. The mean squared change of the outputs is the sum of the eigenvalues left out: the least any map of
rank R can reach, so never more than truncating the SVD of W itself.

Differs from the paper: V comes from the SVD of W L, with L L^T the covariance of the *inputs* plus `damp` times its
mean diagonal (the same V, without a pass over outputs, and defined where the text leaves directions unseen); ranks are
not the same everywhere but shared out under one budget (`keep`), by the relative error saved per parameter, layers
weighing what they hold, in multiples of 8; a layer for which factors would not be smaller stays dense. The output head
and the embedding are left alone.

The folder holds the factors, so its bytes really shrink. No stock architecture has factored layers: the folder carries
its own short modeling file, which stock transformers runs with `trust_remote_code=True`; without it, loading is
refused there, never silently wrong. steno loads such folders without running code from them.
"""

from dataclasses import dataclass
from functools import partial
from inspect import getsource
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt

from steno.core import Card, Span
from steno.core.errors import KnobError, ModelError, PromptError
from steno.models.checkpoint import Checkpoint

from ._layers import layers, shape
from ._ledger import Layer
from ._output import Array, Piece
from ._ranks import STEP, Choice, choices, share
from ._recoding import Recoded, Recoding, float_dtype, numbers
from ._write import Progress
from .base import Calibration, WeightsKnob

CARD = Card(
    paper="LORD: Low Rank Decomposition Of Monolingual Code LLMs For One-Shot Compression",
    keeps="near",
    breaks=("weights",),
    backends=("hf",),
    requires=("hf",),
)

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

CODE = """

from transformers import {config}, {model}
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping

# Names in the files are those of the base model's files.
register_checkpoint_conversion_mapping("{type}", get_checkpoint_conversion_mapping("{base}") or [], overwrite=True)


class LowRankConfig({config}):
    model_type = "{type}"


class LowRankForCausalLM({model}):
    config_class = LowRankConfig

    def __init__(self, config):
        super().__init__(config)
        install(self, config.steno_lowrank["ranks"], config.steno_lowrank["center"])
"""


@dataclass(frozen=True, kw_only=True)
class LowRank(WeightsKnob):
    """`keep` is the part of the linear layers' parameters that stays; `center` takes covariances about the mean, as
    the paper does, at the price of a bias per layer."""

    card: ClassVar[Card] = CARD
    points: ClassVar = ({"keep": 0.9}, {"keep": 0.8}, {"keep": 0.6})
    keep: Annotated[float, Span(0.01, 1.0, "of the parameters")] = 0.8
    damp: Annotated[float, Span(1e-9, 1.0, "of the mean variance")] = 0.01
    center: bool = True

    def recode(
        self, source: Checkpoint, scratch: Path, calibration: Calibration | None, progress: Progress
    ) -> Recoding:
        if not calibration:
            raise PromptError("weights.lowrank needs calibration texts. Give some of what it will see.")
        from ._moments import collect

        base = str(source.config.get("model_type"))
        names = layers(source).linear
        modules = [name.removesuffix(".weight") for name in names]
        scratch.mkdir()
        options: dict[str, list[Choice]] = {}
        places = {module: scratch / f"{i}.npz" for i, module in enumerate(modules)}
        for module, moments in collect(source.path, modules, calibration, progress):
            weight = _weight(source, module)
            progress("decomposing", len(options), len(modules))
            mean, covariance = moments.covariance(self.center)
            basis, energies = features(weight, covariance.numpy(), self.damp)
            extra = len(weight) if self.center and f"{module}.bias" not in source else 0
            rows, columns = weight.shape
            options[module] = choices(rows, columns, extra, energies)
            most = max((choice.rank for choice in options[module]), default=0)
            np.savez(places[module], basis=basis[:, :most].astype(np.float32), mean=mean.numpy(), energies=energies)
        chosen = self._chosen(options, {m: int(np.prod(shape(source, f"{m}.weight"))) for m in modules})
        weights = {
            f"{module}.weight": self._recoded(source, module, choice.rank, places[module])
            for module, choice in chosen.items()
            if choice.rank
        }
        ranks = {module: choice.rank for module, choice in chosen.items() if choice.rank}
        return _folder(base, ranks, self.center, weights)

    def _chosen(self, options: dict[str, list[Choice]], sizes: dict[str, int]) -> dict[str, Choice]:
        # A layer that saw no token stays dense, and what it weighs is part of the budget.
        unseen = sum(size for module, size in sizes.items() if module not in options)
        total = sum(sizes.values())
        found = share(list(options.values()), self.keep * total - unseen)
        if found is None:
            least = (unseen + sum(choice[0].cost for choice in options.values())) / total
            raise KnobError(
                f"weights.lowrank: keep={self.keep:g} is below the {least:.3f} that rank {STEP} in every layer takes. "
                f"Set --set weights.lowrank.keep={min(1.0, least + 0.01):.2f} or more."
            )
        return dict(zip(options, found, strict=True))

    def _recoded(self, source: Checkpoint, module: str, rank: int, place: Path) -> Recoded:
        rows, columns = shape(source, f"{module}.weight")
        dtype = float_dtype(source, f"{module}.weight")
        had = f"{module}.bias" in source
        pieces = (
            Piece(f"{module}.weight_a", dtype, (rank, columns), "factors"),
            Piece(f"{module}.weight_b", dtype, (rows, rank), "factors"),
        )
        if had or self.center:
            pieces = (*pieces, Piece(f"{module}.bias", dtype, (rows,), "bias"))
        make = partial(self._make, source, module, rank, place, dtype)
        return Recoded(pieces=pieces, make=make, drops=(f"{module}.bias",) if had else ())

    def _make(self, source: Checkpoint, module: str, rank: int, place: Path, dtype: str) -> tuple[list[Array], Layer]:
        weight = _weight(source, module).astype(np.float64)
        with np.load(place) as saved:
            basis, mean, energies = saved["basis"][:, :rank].astype(np.float64), saved["mean"], saved["energies"]
        factors = [basis.T @ weight, basis]
        had = f"{module}.bias" in source
        if had or self.center:
            old = source.floats(f"{module}.bias").astype(np.float64) if had else np.zeros(len(weight))
            output = weight @ mean + old if self.center else old
            factors.append(output - basis @ (basis.T @ (output - old)) if self.center else old)
        error = float(np.sqrt(energies[rank:].sum() / max(energies.sum(), 1e-300)))
        layer = Layer(module, weight.size, f"rank {rank}", round(error, 9))
        return [numbers(f.astype(np.float32), dtype) for f in factors], layer


def features(weight: F32, covariance: F64, damp: float) -> tuple[F64, F64]:
    """The principal directions [N, min(N, K)] of a layer's outputs W x, and the energy [min(N, K)] along each, largest
    first, for inputs of `covariance` [K, K] with `damp` times its mean diagonal added. float64."""
    import torch

    spread = torch.from_numpy(covariance)
    level = float(spread.diagonal().mean())
    root = torch.linalg.cholesky(spread + (damp * level if level > 0 else 1.0) * torch.eye(len(spread)))
    basis, values, _ = torch.linalg.svd(torch.tensor(weight, dtype=torch.float64) @ root, full_matrices=False)
    return basis.numpy(), values.square().numpy()


def _weight(source: Checkpoint, module: str) -> F32:
    return source.linear(f"{module}.weight", shape(source, f"{module}.weight")).dense()


def _folder(base: str, ranks: dict[str, int], center: bool, weights: dict[str, Recoded]) -> Recoding:
    """The recoding with the configuration and the code by which the folder is loaded."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from steno.models import _factors, lowrank

    if not ranks:
        return Recoding(weights=weights, config={})
    model = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(base)
    if not isinstance(model, str):
        raise ModelError(f"weights.lowrank: transformers has no one causal language model for '{base}'.")
    kind = f"{lowrank.KEY}_{base}"
    code = getsource(_factors) + CODE.format(config=CONFIG_MAPPING[base].__name__, model=model, base=base, type=kind)
    file = f"modeling_{lowrank.KEY}"
    config = {
        "model_type": kind,
        "architectures": ["LowRankForCausalLM"],
        "auto_map": {"AutoConfig": f"{file}.LowRankConfig", "AutoModelForCausalLM": f"{file}.LowRankForCausalLM"},
        lowrank.KEY: {"base": base, "center": center, "ranks": ranks},
    }
    return Recoding(weights=weights, config=config, files={f"{file}.py": code})
