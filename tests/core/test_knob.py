"""A knob is a validated, frozen record whose messages hold the remedy."""

import pickle
from dataclasses import FrozenInstanceError, dataclass
from typing import Annotated, ClassVar

import pytest

from steno.core import Card, Knob, OneOf, Span
from steno.core.errors import KnobError


@dataclass(frozen=True, kw_only=True)
class Sample(Knob):
    card: ClassVar[Card] = Card(keeps="near")
    bits: Annotated[int, OneOf(2, 3, 4, 8)] = 4
    share: Annotated[float, Span(0, 1)] = 0.5
    groups: Annotated[tuple[int, ...], Span(1, 64, "tokens")] = (32,)
    label: str | None = None
    inner: Knob | None = None
    flag: bool = False


NAME = Sample().name


def test_name_is_the_module_path():
    assert NAME == __name__.removeprefix("steno.")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bits": 5}, "bits must be one of 2, 3, 4, 8, got 5"),
        ({"bits": 4.0}, "bits must be int, got 4.0"),
        ({"bits": True}, "bits must be int, got True"),
        ({"share": 1.5}, "share must be between 0 and 1, got 1.5"),
        ({"share": float("nan")}, "share must be between 0 and 1, got nan"),
        ({"share": "much"}, "share must be float, got 'much'"),
        ({"groups": (32, 65)}, "groups must be between 1 and 64 tokens, got 65"),
        ({"groups": 3}, "groups must be"),
        ({"flag": 1}, "flag must be bool, got 1"),
        ({"label": 3}, "label must be str or NoneType, got 3"),
    ],
)
def test_a_bad_value_is_named_with_its_rule_and_remedy(settings, words):
    with pytest.raises(KnobError) as caught:
        Sample(**settings)
    assert words in str(caught.value)
    assert f"--set {NAME}." in str(caught.value)


def test_unknown_field_names_the_nearest():
    with pytest.raises(KnobError, match=r"has no field 'bitz'. Did you mean bits"):
        Sample.build({"bitz": 4})


def test_frozen_hashable_equal_and_picklable():
    one, two = Sample(bits=8), Sample(bits=8)
    assert one == two
    assert hash(one) == hash(two)
    assert one != Sample()
    assert pickle.loads(pickle.dumps(one)) == one
    with pytest.raises(FrozenInstanceError):
        one.bits = 4  # type: ignore[misc]


def test_lists_become_tuples_and_whole_numbers_become_floats():
    knob = Sample.build({"groups": [8, 16], "share": 1})
    assert knob == Sample(groups=(8, 16), share=1.0)
    assert isinstance(knob.share, float)


def test_settings_hold_plain_data_and_nested_knobs():
    assert Sample(inner=Sample(bits=2)).settings()["inner"] == {"name": NAME, **Sample(bits=2).settings()}
