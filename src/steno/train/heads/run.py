"""One whole run: corpus, the model's own text and states, training, score on held-out text, the adapter file."""

import math
import time
from importlib import import_module
from pathlib import Path
from typing import cast

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from steno.core.errors import DataError, ModelError
from steno.decode.adapter import SUFFIX, Adapter, AdapterCard
from steno.models import ModelSpec, load, locate
from steno.models._model import HFModel
from steno.tokens import load as load_tokenizer
from steno.train import corpus
from steno.train.heads import recipe as recipes
from steno.train.heads.base import Frozen, Part
from steno.train.heads.collect import Rows, collect

_talk = Console(stderr=True)


def run(recipe: Path, *, out: Path, minutes: float | None = None, force: bool = False) -> dict[str, object]:
    """Train the part of a recipe and write `out/METHOD.safetensors`; returns what it reached.

    With `minutes`, training ends its schedule within them. Without, the same recipe, model and machine give the same
    file. Raises RecipeError, ModelError, DataError or OutputError.
    """
    plan = recipes.load(recipe)
    name = plan.method.rpartition(".")[2]
    path = out / f"{name}{SUFFIX}"
    if not (out / "corpus" / "manifest.json").is_file():
        _talk.print("gathering the corpus")
        corpus.build(plan, out / "corpus")
    model = load(ModelSpec(source=plan.model))
    frozen = freeze(plan.model)
    torch.manual_seed(plan.schedule.seed)
    part = build(name, frozen, plan.shape)
    tokenizer = load_tokenizer(locate(plan.model))
    _talk.print(f"{model.name} writes {plan.text.rows} rows of {plan.text.tokens} tokens")
    taught, held = (
        collect(
            model, corpus.load(out / "corpus", split), tokenizer, plan.text,
            rows=rows, seed=plan.schedule.seed, layers=part.reads,
        )
        for split, rows in (("train", plan.text.rows), ("valid", plan.text.held_out_rows))
    )  # fmt: skip
    before = score(part, held, plan)
    train(part, taught, plan, minutes)
    scores = score(part, held, plan)
    card = AdapterCard(
        method=plan.method, model=model.name, base=model.origin, layers=part.reads,
        recipe=recipe.read_text(encoding="utf-8"), scores=scores,
    )  # fmt: skip
    Adapter(card=card, tensors=tensors(part)).write(path, force=force)
    return {
        "adapter": str(path),
        "method": plan.method,
        "parameters": sum(weight.numel() for weight in part.parameters()),
        "untrained": before,
        "held_out": scores,
    }


def build(name: str, frozen: Frozen, shape: recipes.Shape) -> Part:
    """The network of a method, as it is before training."""
    kind = cast(type[Part], import_module(f"steno.train.heads.{name}").Net)
    return kind(frozen, shape)


def freeze(source: str) -> Frozen:
    """The model in torch, for its embeddings and its output projection. Raises ModelError where they cannot be had."""
    model = cast(HFModel, load(ModelSpec(source=source, backend="hf", weights="fp32", device="cpu")))
    if not model.depth or not model.embeds:
        raise ModelError(f"{model.name}: its head cannot be told apart from its layers, so nothing is trained on it.")
    embed = torch.from_numpy(model.embed(np.arange(model.vocab, dtype=np.int32)).copy())
    return Frozen(embed=embed, head=model.finish, layers=model.depth)


def train(part: Part, rows: Rows, plan: recipes.PartRecipe, minutes: float | None = None) -> None:
    """Train in place, on the tokens that the model wrote itself."""
    schedule = plan.schedule
    optimizer = torch.optim.AdamW(part.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay)
    rng = np.random.default_rng(schedule.seed)
    start, budget_s = time.monotonic(), minutes * 60 if minutes else float("inf")
    shown = 0.0
    for step in range(schedule.steps):
        done = max(step / schedule.steps, (time.monotonic() - start) / budget_s)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr * min(1.0, (step + 1) / schedule.warmup_steps) * (1 - done)
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        # Row by row: logits of a whole batch are fresh pages at every step, which costs more than the arithmetic.
        for row in rng.integers(0, len(rows.ids), schedule.rows):
            hidden, ids = _batch(rows, np.array([row]))
            loss = part.loss(hidden, ids, plan.text.prompt - 1) / schedule.rows
            loss.backward()
            total += loss.item()
        if not math.isfinite(total):
            raise DataError(f"Training: the loss is not a number at step {step}. Lower schedule.lr.")
        torch.nn.utils.clip_grad_norm_(part.parameters(), 1.0)
        optimizer.step()
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            _talk.print(f"step {step} of {schedule.steps}: loss {total:.3f}")


@torch.no_grad()
def score(part: Part, held: Rows, plan: recipes.PartRecipe) -> dict[str, float]:
    """Share of right first choices by depth, and the mean length of a right beginning, on held-out text."""
    hits: list[Tensor] = []
    for row in range(len(held.ids)):
        hidden, ids = _batch(held, np.array([row]))
        logits, wanted = part.guesses(hidden, ids, plan.text.prompt - 1)
        hits.append(logits.argmax(-1) == wanted)
    right = torch.cat(hits).float()
    found = {f"depth {d}": share for d, share in enumerate(right.mean(0).tolist(), 1)}
    return {**found, "right tokens": right.cumprod(1).sum(1).mean().item()}


def tensors(part: Part) -> dict[str, np.ndarray]:
    """The part's parameters as the adapter holds them."""
    return {name: weight.detach().numpy().astype(np.float32) for name, weight in part.named_parameters()}


def _batch(rows: Rows, chosen: np.ndarray) -> tuple[dict[int, Tensor], Tensor]:
    hidden = {layer: torch.from_numpy(found[chosen].astype(np.float32)) for layer, found in rows.hidden.items()}
    return hidden, torch.from_numpy(rows.ids[chosen].astype(np.int64))
