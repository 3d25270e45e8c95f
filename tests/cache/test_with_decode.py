"""Compression and speculation together, through the decoding loop: drafts change the number of forwards, nothing else.

Drafters x cache forms x models, in pinned mode, in ragged batches of three rows that serve four requests.
"""

import sys
from pathlib import Path

import pytest

from steno.cache import CacheKnob
from steno.cache.affine import Affine
from steno.cache.gear import Gear
from steno.cache.snap import Snap
from steno.cache.window import Window
from steno.core import Knob, Model, Plan
from steno.decode import Completion, CostTable, Request, generate
from steno.decode.draft.lookup import Lookup
from steno.decode.draft.recycle import Recycle
from steno.decode.draft.suffix import Suffix
from steno.decode.shape.temperature import Temperature
from steno.models import ModelSpec, load

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

import tiny

FORMS = [
    Affine(key_bits=2, value_bits=2, group=8, residual=16, block=16),
    Affine(key_bits=4, value_bits=3, group=8, residual=0, block=8),
    Window(sinks=2, window=12, block=4),
    Gear(residual=8, block=32),
    Snap(budget=12, window=4, kernel=3, residual=8, block=4),
]
DRAFTERS = [Lookup(), Suffix(min_prob=0.0), Recycle()]
REQUESTS = [
    Request(number=0, prompt=(5, 9, 23, 71, 40, 11, 3) * 5, max_tokens=40, ignore_eos=True),
    Request(number=1, prompt=(17, 4, 17), max_tokens=50, ignore_eos=True),
    Request(number=2, prompt=tuple((7 * i * i + 3) % tiny.VOCAB for i in range(21)), max_tokens=30, ignore_eos=True),
    Request(number=3, prompt=(60, 61) * 6, max_tokens=25, ignore_eos=True),
]

FREE = CostTable({1: 1.0})
"""Wide forwards cost nothing, so every draft is tried; measured costs would make the tests idle on a busy machine."""


@pytest.fixture(scope="module", params=["llama", pytest.param("qwen3", marks=pytest.mark.slow)])
def pinned(request, tmp_path_factory) -> Model:
    folder = tiny.make(request.param, tmp_path_factory.mktemp("models") / request.param)
    return load(ModelSpec(source=str(folder), backend="hf", pinned=True, width=12, threads=1))


@pytest.fixture(scope="module")
def greedy(pinned) -> dict[CacheKnob, list[Completion]]:
    return {form: run(pinned, form) for form in FORMS}


def run(model: Model, *knobs: Knob) -> list[Completion]:
    return generate(model, REQUESTS, Plan(knobs), batch=3, capacity=128, costs=FREE)


def ids(done: list[Completion]) -> list[tuple[int, ...]]:
    return [completion.tokens for completion in done]


@pytest.mark.parametrize("form", FORMS, ids=repr)
@pytest.mark.parametrize("drafter", DRAFTERS, ids=lambda knob: knob.name)
def test_speculative_and_compressed_is_greedy_and_compressed(pinned, greedy, drafter, form):
    assert ids(run(pinned, form, drafter)) == ids(greedy[form])


@pytest.mark.parametrize("drafter", DRAFTERS, ids=lambda knob: knob.name)
def test_sampling_with_drafts_and_compression_is_sampling_with_compression(pinned, drafter):
    sampled = run(pinned, FORMS[0], Temperature(temperature=0.7))
    assert ids(run(pinned, FORMS[0], Temperature(temperature=0.7), drafter)) == ids(sampled)


def test_the_comparison_has_something_to_compare(pinned, greedy):
    """Drafts were accepted and forms changed the text: neither side of the equality is idle."""
    for drafter in DRAFTERS:
        drafted = run(pinned, FORMS[0], drafter)
        assert sum(piece.drafted for done in drafted for piece in done.pieces) > 3
    texts = [ids(run(pinned)), *map(ids, greedy.values())]
    assert len({tuple(text) for text in texts}) == len(texts)
