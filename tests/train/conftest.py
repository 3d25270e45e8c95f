"""A recipe and a run folder small enough to train in a second."""

import shutil
from pathlib import Path

import pytest
from made_up import SOURCES, program

from steno.train import recipe as recipes
from steno.train.run import prepare

RECIPE = (
    """
steno_train = 1
name = "micro"
"""
    + SOURCES
    + """[tokenizer]
vocab = 320
sample_mb = 1.0
[shape]
width = 64
layers = 2
heads = 2
kv_heads = 1
head_dim = 32
ffn = 96
context = 64
[schedule]
steps = 6
batch = 4
micro_batch = 2
sequence = 32
warmup_steps = 2
eval_every = 3
log_every = 1
"""
)


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for seed in range(24):
        (folder / f"file{seed}.py").write_text(program(seed))
    return folder


@pytest.fixture(scope="session")
def recipe_file(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "micro.toml"
    path.write_text(RECIPE.format(path=sources))
    return path


@pytest.fixture(scope="session")
def _prepared(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared")
    prepare(recipes.load(recipe_file), out)
    return out


@pytest.fixture
def out(_prepared: Path, tmp_path: Path) -> Path:
    """A fresh run folder with its tokens packed."""
    return Path(shutil.copytree(_prepared, tmp_path / "run"))
