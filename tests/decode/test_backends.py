"""On real sessions: speculative decoding gives the tokens of plain decoding on the same backend, batch and capacity."""

from functools import cache
from pathlib import Path

import pytest
from rig import DRAFTERS, FREE, run

from steno.core import Keeps, Model
from steno.decode import Request
from steno.decode.accept.residual import Residual
from steno.decode.draft.recycle import Recycle
from steno.decode.shape.repetition import Repetition
from steno.decode.shape.temperature import Temperature
from steno.models import ModelSpec, load

pytest.importorskip("transformers")

VOCAB = 96
WARM = (Repetition(penalty=1.05), Temperature(temperature=0.3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A random Llama whose text falls into loops, so that drafters have work."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=256, initializer_range=0.2, bos_token_id=1,
        eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def models(folder):
    @cache
    def get(kind: str) -> Model:
        if kind == "native":
            pytest.importorskip("steno.models._engine")
            return load(ModelSpec(source=str(folder), backend="native", threads=1))
        return load(ModelSpec(source=str(folder), backend="hf", pinned=True, width=8, weights="fp32", threads=1))

    return get


def asking(count: int, most: int) -> list[Request]:
    """Ragged prompts and ends."""
    prompts = [tuple((n * 31 + i * i) % VOCAB for i in range(1 + 9 * n % 25)) for n in range(count)]
    return [Request(number=n, prompt=p, max_tokens=most - n, ignore_eos=True) for n, p in enumerate(prompts)]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("knobs", [(), WARM], ids=["greedy", "gumbel"])
@pytest.mark.parametrize("kind", ["native", "pinned"])
def test_drafts_change_no_token(kind, knobs, batch, models):
    model = models(kind)
    asked = asking(4, 36)
    plain = run(model, asked, *knobs, batch=batch)
    assert any(c.tokens for c in plain)
    accepted = 0
    for drafter in DRAFTERS:
        done = run(model, asked, *knobs, drafter, batch=batch)
        assert [(c.tokens, c.finish) for c in done] == [(c.tokens, c.finish) for c in plain]
        accepted += sum(c.stats.accepted for c in done)
    assert accepted > 10


def test_native_rows_do_not_know_their_batch(models):
    model = models("native")
    asked = asking(6, 30)
    texts = {tuple(c.tokens for c in run(model, asked, Recycle(), *WARM, batch=batch)) for batch in (1, 2, 6)}
    assert len(texts) == 1


def test_pinned_trees_are_confirmed(models, monkeypatch):
    from steno.decode._budget import Budget

    model = models("pinned")
    session = model.open(1, 8)
    assert (session.caps.chain_exact, session.caps.tree_exact) == (Keeps.BITS, Keeps.NEAR)
    monkeypatch.setattr(Budget, "choose", lambda self, drafts: list(drafts))
    asked = asking(4, 30)
    plain = run(model, asked, batch=2)
    done = run(model, asked, Recycle(), batch=2)
    assert [c.tokens for c in done] == [c.tokens for c in plain]
    assert sum(c.stats.passes for c in done) > sum(len(c.pieces) for c in done)


def test_residual_runs_on_real_sessions(models):
    asked = asking(4, 20)
    for kind in ("native", "pinned"):
        one, two = (
            run(models(kind), asked, Recycle(), Temperature(), Residual(), batch=2, costs=FREE) for _ in range(2)
        )
        assert [c.tokens for c in one] == [c.tokens for c in two]


@pytest.mark.parametrize("form", ["affine", "window"])
def test_drafts_and_a_compressed_cache_compose(form, models):
    """Plain decoding over a compressed cache, token for token: a step never crosses a point where the cache seals."""
    from steno.core import make_knob

    settings = {"affine": {}, "window": {"sinks": 1, "window": 12, "block": 4}}[form]
    knob = make_knob(f"cache.{form}", settings)
    asked = asking(3, 40)
    for batch in (1, 2):
        plain = run(models("pinned"), asked, knob, batch=batch)
        for drafter in DRAFTERS:
            done = run(models("pinned"), asked, knob, drafter, batch=batch)
            assert [c.tokens for c in done] == [c.tokens for c in plain]
        assert sum(c.stats.accepted for c in done) > 0
