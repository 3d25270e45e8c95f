"""Schedules: which rows run decides speed, and no token."""

import random

import pytest
from rig import FREE, Strict, plain, requests, run

from steno.core import Plan, index
from steno.core.errors import PlanError
from steno.decode import Loop
from steno.decode.draft.suffix import Suffix
from steno.decode.schedule.exspec import Exspec
from steno.decode.search.diverse_beam import DiverseBeam
from steno.decode.shape.temperature import Temperature

SCHEDULES = [name for name in index.scan() if name.startswith("decode.schedule.")]


def test_exspec_by_hand():
    pool = Exspec(window=3)
    assert pool.held(4) == 12
    assert pool.choose(2, [7, 5, 9, 5, 9, 5]) == [1, 3], "the largest group, cut to the batch"
    assert pool.choose(4, [7, 5, 9, 5, 9]) == [1, 3], "of equal groups the one that came first"
    assert pool.choose(4, [7, 5, 9]) == [0, 1, 2], "no group: the first ones, ragged"
    assert Exspec(group=3).choose(4, [7, 5, 9, 5, 9]) == [0, 1, 2, 3]
    assert pool.choose(4, [7]) == [0]


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_choice_is_pure_and_within_the_batch(name):
    knob = index.knob_class(name)()
    rng = random.Random(1)
    for _ in range(200):
        batch = rng.randint(1, 6)
        assert knob.held(batch) >= batch
        lengths = [rng.randint(1, 4) for _ in range(rng.randint(1, knob.held(batch)))]
        chosen = knob.choose(batch, tuple(lengths))
        assert chosen == knob.choose(batch, lengths) == sorted(set(chosen))
        assert 1 <= len(chosen) <= batch and set(chosen) <= set(range(len(lengths)))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warm", [(), (Temperature(temperature=0.8),)], ids=["greedy", "gumbel"])
def test_every_row_gives_what_it_gives_alone(name, warm):
    """For every batch and order, with a drafter whose acceptance is ragged; a row's stray neighbours change nothing."""
    model = Strict(vocab=30, order=1, seed=6, end=4)
    asked = requests(11, vocab=30, seed=6)
    alone = [plain(model, request, Plan(warm)) for request in asked]
    for batch in (1, 3, 20):
        for drafter in ((), (Suffix(),)):
            for texts in (asked, asked[::-1]):
                done = run(model, texts, index.knob_class(name)(), *warm, *drafter, batch=batch)
                by_number = {c.request.number: (c.tokens, c.finish) for c in done}
                assert [by_number[r.number] for r in asked] == alone


def test_a_step_runs_a_group_and_the_others_wait():
    """Lengths 5, 5, 8, 8, 8 in a pool of six: first the three eights, of which two fit, then they part."""
    model = Strict(vocab=30, order=1, seed=6)
    loop = Loop(model, Plan((Exspec(),)), batch=2, costs=FREE, capacity=40)
    from steno.decode import Request

    for number, length in enumerate((5, 5, 8, 8, 8)):
        loop.submit(Request(number=number, prompt=tuple(range(1, length + 1)), max_tokens=6))
    ran = [sorted(piece.number for piece in loop.step()) for _ in range(3)]
    assert ran[0] == [2, 3]
    assert all(1 <= len(step) <= 2 for step in ran)
    assert loop.batch == 6 and sum(1 for _ in loop) > 0 and not loop.busy


def test_a_schedule_is_no_search_s():
    with pytest.raises(PlanError, match="cannot stand beside"):
        Plan((Exspec(), DiverseBeam())).check()
