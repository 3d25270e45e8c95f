"""Candidates: every combination that fits, one-step neighbours, and nothing that breaks a rule."""

import pytest
from tune_fakes import Loose, Quick, defaults

from steno.core import Keeps, Plan
from steno.tune import space
from steno.tune.space import label, neighbours, seeds, variants


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(space, "_defaults", defaults)


def test_seeds_cross_the_slots_and_hold_to_the_promise():
    assert [label(p) for p in seeds(Plan(), "hf", Keeps.TOKENS)] == ["liar", "quick", "slow"]
    near = [label(p) for p in seeds(Plan(), "hf", Keeps.NEAR)]
    assert sorted(near) == ["liar", "loose", "loose + liar", "loose + quick", "loose + slow", "quick", "slow"]
    assert [label(p) for p in seeds(Plan(), "native", Keeps.NEAR)] == ["liar", "quick", "slow"]


def test_a_slot_that_is_fixed_stays():
    base = Plan((Quick(depth=8),))
    assert [label(p) for p in seeds(base, "hf", Keeps.NEAR)] == ["loose + quick(depth=8)"]
    assert seeds(base, "hf", Keeps.TOKENS) == []
    assert neighbours(base, base, "hf", Keeps.TOKENS) == []


def test_neighbours_are_one_step_in_one_field():
    base = Plan()
    found = neighbours(Plan((Quick(depth=4),)), base, "hf", Keeps.TOKENS)
    assert [label(p) for p in found] == ["quick(depth=8)", "quick(depth=2)"]
    assert [label(p) for p in neighbours(Plan((Quick(depth=64),)), base, "hf", Keeps.TOKENS)] == ["quick(depth=32)"]
    assert [label(p) for p in neighbours(Plan((Quick(depth=1),)), base, "hf", Keeps.TOKENS)] == ["quick(depth=2)"]


def test_variants_cover_every_kind_of_field_and_skip_what_the_method_refuses():
    found = [(k.bits, k.share, k.on) for k in variants(Loose()) if isinstance(k, Loose)]
    assert found == [(8, 0.5, True), (2, 0.5, True), (4, 1.0, True), (4, 0.25, True), (4, 0.5, False)]
    assert (2, 0.5, False) not in [(k.bits, k.share, k.on) for k in variants(Loose(bits=2)) if isinstance(k, Loose)]


def test_the_real_index_gives_valid_plans(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    for backend in ("table", "native", "hf"):
        for keep in (Keeps.TOKENS, Keeps.LAW, Keeps.NEAR):
            found = seeds(Plan(), backend, keep)
            assert len(set(found)) == len(found)
            for plan in found:
                plan.check(backend, keep)
                assert all(knob.complete for knob in plan.knobs), "what lacks a file is for the user to name"
                assert Plan.from_toml(plan.to_toml()) == plan
    assert seeds(Plan(), "table", Keeps.TOKENS)
