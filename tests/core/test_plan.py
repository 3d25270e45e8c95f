"""A plan round-trips, refuses what it does not know, and derives clashes and its promise from the cards."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from steno.core import Card, Keeps, Knob, Plan, index
from steno.core.errors import KnobError, PlanError
from steno.core.plan import parse_value


def kind(name: str, card: Card) -> type[Knob]:
    made = type("Made", (Knob,), {"card": card, "__annotations__": {"size": int, "card": ClassVar[Card]}, "size": 1})
    made.__module__ = f"steno.{name}"
    return dataclass(frozen=True, kw_only=True)(made)


CARDS = {
    "decode.draft.one": Card(keeps="bits", breaks=("decode.draft",)),
    "decode.draft.two": Card(keeps="bits", breaks=("decode.draft",)),
    "decode.accept.loose": Card(keeps="law", needs=("decode.draft",)),
    "decode.shape.warm": Card(keeps="near", task=True),
    "cache.tight": Card(keeps="near", backends=("hf",)),
    "weights.small": Card(keeps="near"),
}
KINDS = {name: kind(name, card) for name, card in CARDS.items()}


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setattr(index, "knob_class", lambda name: KINDS[name])


def make(*names: str) -> Plan:
    return Plan(tuple(KINDS[n]() for n in names))


def test_order_is_by_room():
    plan = make("decode.draft.one", "weights.small", "cache.tight")
    assert [k.name for k in plan.knobs] == ["weights.small", "cache.tight", "decode.draft.one"]


def test_keeps_the_weakest_and_task_knobs_do_not_count():
    assert make().keeps is Keeps.BITS
    assert make("decode.draft.one", "decode.shape.warm").keeps is Keeps.BITS
    assert make("decode.draft.one", "decode.accept.loose").keeps is Keeps.LAW
    assert make("decode.draft.one", "decode.accept.loose", "cache.tight").keeps is Keeps.NEAR


def test_round_trip_through_toml():
    plan = make("decode.draft.one", "cache.tight").set("cache.tight.size", "7")
    assert Plan.from_toml(plan.to_toml()) == plan
    assert plan.one("cache").settings() == {"size": 7}


def test_clashes_come_from_the_cards():
    assert make("decode.draft.one", "decode.accept.loose").clashes() == []
    assert make("decode.draft.one", "decode.draft.two").clashes() == [
        "decode.draft.one cannot stand beside decode.draft.two. Remove one of the two."
    ]
    assert make("decode.accept.loose").clashes() == ["decode.accept.loose needs one of decode.draft. Add one."]
    assert "does not run on the native backend (it runs on: hf)" in make("cache.tight").clashes("native")[0]


def test_a_knob_twice_is_a_clash():
    assert "stands twice" in make("cache.tight", "cache.tight").clashes()[0]


def test_keep_refuses_anything_weaker():
    with pytest.raises(PlanError, match=r"cache.tight keeps near, and tokens is asked for"):
        make("cache.tight").check(keep=Keeps.TOKENS)
    make("decode.draft.one").check(keep=Keeps.BITS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("knob = 1", "has no version"),
        ("steno = 2", "version 2"),
        ("steno = 1\nspeed = 3", "unknown key 'speed'"),
        ("steno = ", "is not valid TOML"),
        ("steno = 1\n[[knob]]\nsize = 1", "needs a name"),
        ("steno = 1\nknob = 3", r"\[\[knob\]\] tables"),
        ('steno = 1\n[[knob]]\nname = "cache.tight"\nsise = 1', "has no field 'sise'"),
        ('steno = 1\n[[knob]]\nname = "cache.tight"\nsize = "big"', "size must be int"),
    ],
)
def test_what_cannot_be_read_is_said(text, words):
    with pytest.raises((PlanError, KnobError), match=words):
        Plan.from_toml(text)


def test_values_from_the_command_line():
    assert [parse_value(t) for t in ("4", "0.5", "true", "[1, 2]", '"a"', "drop")] == [
        4,
        0.5,
        True,
        [1, 2],
        "a",
        "drop",
    ]
