"""Training drafters' parts: recipes, the model's own text and states, and one whole run."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up import SOURCES

from steno.core import Nodes, Want
from steno.core.errors import DataError, ModelError
from steno.decode import Request, generate
from steno.decode.adapter import check_base, load
from steno.models import ModelSpec
from steno.models import load as load_model
from steno.models.table import TableModel
from steno.train import main
from steno.train.base import Document, RecipeError
from steno.train.heads import collect
from steno.train.heads import recipe as recipes

RECIPE = (
    """
steno_adapter = 1
method = "decode.draft.{method}"
model = "nib"
"""
    + SOURCES
    + """[text]
rows = 6
tokens = 40
prompt = 12
held_out_rows = 2
[shape]
depth = 2
[schedule]
steps = 6
rows = 2
lr = 3e-3
warmup_steps = 2
"""
)


class Words:
    """A tokenizer of one id per character."""

    def encode(self, text: str) -> list[int]:
        return [ord(c) % 16 for c in text]


def document(text: str) -> Document:
    return Document(source="s", path=text[:4], bucket="b", licence="", text=text)


def test_openings_are_crops_of_documents_that_are_long_enough() -> None:
    texts = ["abcdefgh" * 9, "xy", "ponmlkji" * 40]
    found = collect.openings(map(document, texts), Words(), 200, 10, seed=3)
    whole = [Words().encode(t) for t in texts]
    counts = [0, 0, 0]
    for row in found.tolist():
        owners = [i for i, ids in enumerate(whole) if any(ids[a : a + 10] == row for a in range(len(ids) - 9))]
        counts[owners[0]] += 1
    assert counts[1] == 0 and counts[2] > 2 * counts[0] > 0
    assert (found == collect.openings(map(document, texts), Words(), 200, 10, seed=3)).all()
    with pytest.raises(DataError, match=r"Lower text\.prompt"):
        collect.openings([document("xy")], Words(), 1, 10, seed=3)


def test_the_model_goes_on_by_itself() -> None:
    model = TableModel(vocab=20, order=2, end=3)
    prompts = np.array([[1, 2], [3, 4], [5, 6]], np.int32)
    ids = collect.continued(model, prompts, 30)
    assert ids.shape == (3, 30) and (ids[:, :2] == prompts).all()
    for row in ids:
        for at in range(2, 30):
            assert row[at] == model.row(row[:at].tolist()).argmax()
    with pytest.raises(ModelError, match=r"lower text\.tokens"):
        collect.continued(replace(model, context=20), prompts, 30)


def test_states_are_those_of_single_steps() -> None:
    model = load_model(ModelSpec(source="nib", backend="native", threads=1))
    ids = np.random.default_rng(0).integers(0, model.vocab, (3, 300)).astype(np.int32)
    found = collect.states(model, ids, (2, 6))
    session = model.open(3, 300)
    session.prefill(ids[:, :280].tolist())
    for at in range(280, 284):
        nodes = Nodes(tokens=np.ascontiguousarray(ids[:, at : at + 1]), parents=np.full((3, 1), -1, np.int32))
        step = session.forward(nodes, Want(hidden=(2, 6)))
        for layer in (2, 6):
            assert (found[layer][:, at] == step.hidden(layer)[:, 0].astype(np.float16)).all()
        session.commit([[0]] * 3)


def test_recipes_are_checked_in_words(sources: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    text = RECIPE.format(method="medusa", path=sources)
    wrong = {
        'method = "decode.draft.medusa"': ('method = "decode.draft.meduza"', r"Did you mean decode\.draft\.medusa"),
        "depth = 2": ("depth = 99", r"depth must lie in \[1, 16\]; got 99"),
        "steno_adapter = 1": ("steno_adapter = 2", "must be 1 for this steno"),
        "rows = 6": ("rowz = 6", "unknown key 'rowz'. Did you mean rows"),
        'bucket = "code"': ('bucket = "core"', "bucket 'core' is not declared"),
    }
    for old, (new, message) in wrong.items():
        path.write_text(text.replace(old, new))
        with pytest.raises(RecipeError, match=message):
            main(path, out=tmp_path / "out")
    path.write_text(text)
    with pytest.raises(RecipeError, match="leave options out"):
        main(path, out=tmp_path / "out", resume=True)
    assert recipes.find("nonsense") is None and recipes.find("medusa") is not None


@pytest.mark.slow
def test_a_run_writes_the_same_adapter_again_and_it_drafts(sources: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(RECIPE.format(method="medusa", path=sources))
    report = main(path, out=tmp_path / "one")
    main(path, out=tmp_path / "two")
    one, two = ((tmp_path / name / "medusa.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    adapter = load(tmp_path / "one" / "medusa.safetensors", "decode.draft.medusa")
    model = load_model(ModelSpec(source="nib", threads=1))
    check_base(adapter, model, path)
    assert adapter.card.recipe == path.read_text() and adapter.card.scores == report["held_out"]
    assert json.dumps(report) and set(report["held_out"]) == {"depth 1", "depth 2", "right tokens"}
    assert adapter.tensors["blocks"].any()
    from steno.core import Plan, make_knob

    knob = make_knob("decode.draft.medusa", {"adapter": str(tmp_path / "one" / "medusa.safetensors")})
    asked = [Request(number=0, prompt=(5, 6, 7), max_tokens=12, ignore_eos=True)]
    assert generate(model, asked, Plan((knob,)))[0].tokens == generate(model, asked)[0].tokens
