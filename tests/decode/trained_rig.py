"""What tests of trained drafters share: a tiny model, adapters trained on it in a moment, sessions without a model."""

from dataclasses import fields
from functools import cache
from pathlib import Path

import numpy as np
import torch

from steno.core import index
from steno.decode import Request
from steno.decode.adapter import Adapter, AdapterCard
from steno.decode.base import Seen
from steno.models import ModelSpec, load
from steno.train.heads import run
from steno.train.heads.base import Frozen
from steno.train.heads.collect import Rows, continued, states
from steno.train.heads.recipe import Bucket, PartRecipe, Schedule, Shape, Source, Text, methods

TRAINED = methods()
VOCAB, WIDTH, LAYERS = 96, 32, 2


def save_llama(path: Path, seed: int = 0) -> Path:
    """A random Llama whose text falls into loops, so that heads have something to learn."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=256, initializer_range=0.2, bos_token_id=1,
        eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def recipe(method: str, model: str, steps: int) -> PartRecipe:
    return PartRecipe(
        steno_adapter=1, method=method, model=model, source=(Source(name="s", kind="stdlib", bucket="b"),),
        bucket=(Bucket(name="b", weight=1.0),), schedule=Schedule(steps=steps, rows=4, lr=1e-2, warmup_steps=4),
        text=Text(rows=16, tokens=48, prompt=8), shape=Shape(depth=3),
    )  # fmt: skip


@cache
def _taught(folder: Path) -> tuple[Frozen, Rows, str, str]:
    """The frozen model, rows of its text with all of its states, its name and its origin."""
    model = load(ModelSpec(source=str(folder), backend="native", weights="fp32", threads=1))
    prompts = np.random.default_rng(0).integers(0, VOCAB, (16, 8)).astype(np.int32)
    ids = continued(model, prompts, 48)
    layers = tuple(range(LAYERS + 1))
    return run.freeze(str(folder)), Rows(ids=ids, hidden=states(model, ids, layers)), model.name, model.origin


def train(method: str, folder: Path, out: Path, steps: int = 60) -> tuple[Path, dict[str, float], dict[str, float]]:
    """An adapter for the model in `folder`, and what it scored before and after training."""
    frozen, rows, name, origin = _taught(folder)
    plan = recipe(method, str(folder), steps)
    torch.manual_seed(plan.schedule.seed)
    part = run.build(method.rpartition(".")[2], frozen, plan.shape)
    before = run.score(part, rows, plan)
    run.train(part, rows, plan)
    after = run.score(part, rows, plan)
    card = AdapterCard(method=method, model=name, base=origin, layers=part.reads, recipe="made up", scores=after)
    path = out / f"{method.rpartition('.')[2]}.safetensors"
    Adapter(card=card, tensors=run.tensors(part)).write(path, force=True)
    return path, before, after


class Bare:
    """A session of embeddings and a head, and nothing else."""

    def __init__(self, frozen: Frozen) -> None:
        self.frozen = frozen

    def embed(self, tokens):
        return self.frozen.embed[torch.from_numpy(np.asarray(tokens, np.int64))].numpy()

    def head(self, hidden):
        return self.frozen.head(torch.from_numpy(np.ascontiguousarray(hidden))).numpy()


class Bench:
    """A method with random weights on a made-up model: the network in torch, and the drafter in numpy."""

    def __init__(self, method: str, path: Path, depth: int = 3, width: int = 24, vocab: int = 40) -> None:
        torch.manual_seed(5)
        matrix = torch.randn(width, vocab)
        self.frozen = Frozen(embed=torch.randn(vocab, width), head=lambda x: x @ matrix, layers=2)
        self.part = run.build(method.rpartition(".")[2], self.frozen, Shape(depth=depth))
        with torch.no_grad():
            for weight in self.part.parameters():
                # Halves, as the file holds them.
                weight.copy_((torch.randn_like(weight) * 0.3).half().float())
        card = AdapterCard(method=method, model="m", base="b", layers=self.part.reads, recipe="", scores={})
        self.path = path / "a.safetensors"
        Adapter(card=card, tensors=run.tensors(self.part)).write(self.path)
        rng = np.random.default_rng(3)
        self.ids = [int(i) for i in rng.integers(0, vocab, 9)]
        # The state after every token but the last, which is pending.
        self.hidden = {
            layer: rng.standard_normal((8, width)).astype(np.float32) * 3 for layer in range(self.frozen.layers + 1)
        }
        self.method = method

    def drafter(self, row: int = 0, **settings):
        """The drafter when `ids[:5]` were the prompt, a first step gained `ids[5]` and a second `ids[6:]`."""
        if "depth" in {field.name for field in fields(index.knob_class(self.method))}:
            settings["depth"] = self.part.shape.depth
        knob = index.make_knob(self.method, {"adapter": str(self.path), **settings})
        drafter = knob.open(2, self.frozen.embed.shape[0])
        drafter.attach(Bare(self.frozen))
        ids, hidden = self.ids, self.hidden
        drafter.start(row, Request(number=0, prompt=tuple(ids[:5])))
        if drafter.prompts:
            drafter.read(row, ids[:3], {k: h[:3] for k, h in hidden.items()})
            drafter.read(row, ids[3:4], {k: h[3:4] for k, h in hidden.items()})
        drafter.observe(row, self.seen(4, [4]))
        # Three nodes of the second step came true; one between them did not.
        drafter.observe(row, self.seen(5, [5, 6, 7], stray=True))
        return drafter

    def seen(self, first: int, places: list[int], stray: bool = False) -> Seen:
        tokens = [self.ids[i] for i in places]
        path = list(range(len(places)))
        hidden = {layer: h[places] for layer, h in self.hidden.items()}
        if stray:
            tokens.insert(1, 0)
            path = [0, *range(2, len(places) + 1)]
            hidden = {layer: np.insert(h, 1, np.nan, 0) for layer, h in hidden.items()}
        parents = [-1, *[0] * (len(tokens) - 1)]
        return Seen(
            tokens=tokens, parents=parents, path=path, new=[self.ids[i + 1] for i in places], hidden=hidden
        )  # fmt: skip

    def naive(self, drafted: list[int]) -> np.ndarray:
        """Laws [D, V] of the network in torch at the last place, when `drafted` are what came."""
        ids = [*self.ids, *drafted]
        need = len(self.hidden[0]) + self.part.shape.depth + 1
        ids = [*ids, *[0] * (need - len(ids))]
        hidden = {
            k: torch.from_numpy(np.concatenate([h, np.zeros((need - len(h), h.shape[1]), np.float32)]))[None]
            for k, h in self.hidden.items()
        }
        with torch.no_grad():
            found = self.part.states(hidden, torch.tensor([ids]))[0, -1]
            return self.frozen.head(found).softmax(-1).numpy()


__all__ = ["LAYERS", "TRAINED", "VOCAB", "WIDTH", "Bench", "recipe", "save_llama", "train"]
