"""The comparisons of `steno bench` that are a method's own: what they count, and when there is nothing to show."""

import json

import pytest

from steno.core import Plan, make_knob
from steno.models import ModelSpec
from steno.tune.bench import bench
from steno.tune.prompts import parse

NIB = ModelSpec(source="nib")


def prompts(*texts):
    return parse("\n".join(json.dumps({"prompt": text}) for text in texts).encode(), "prompts.jsonl")


def test_orders_of_lists_are_compared_where_there_are_any():
    lists = [f"# {n}:\n- one\n- two {n}\n- three\n#\nx = " for n in range(3)]
    found = bench("decode.search.set_prompting", NIB, prompts(*lists), max_tokens=6)
    assert found.verdict == "holds" and found.table[1]["same text"] == "3 of 3"
    assert int(found.table[0]["same text"][0]) < 3, "read as text the order matters"
    assert bench("decode.search.set_prompting", NIB, prompts("x = "), max_tokens=2).verdict == "not testable here"


def test_texts_are_judged_by_the_scorers_of_a_search_and_by_those_asked_for(tmp_path):
    tests = tmp_path / "tests.jsonl"
    tests.write_text(json.dumps({"tests": ["pass", "assert False"]}))
    judge = make_knob("decode.score.tests", {"file": str(tests)})
    found = bench("decode.search.uscd", NIB, prompts("x = 1\n"), Plan((judge,)), max_tokens=2)
    assert [row["decode.score.tests"] for row in found.table] == ["0.500"] * 4
    assert found.verdict == "does not hold", "no arm is above greedy decoding"
    own = bench("decode.search.astar", NIB, prompts("x = 1\n"), max_tokens=4)
    assert {"decode.score.syntax", "repeated 4-grams"} <= set(own.table[0])


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("decode.shape.rpg", "measured"),
        ("decode.shape.top_k", "not testable here"),
        ("decode.search.self_infilling", "not testable here"),
        ("decode.score.tests", "not testable here"),
    ],
)
def test_what_is_asked_for_is_measured_where_it_names_settings(name, verdict):
    found = bench(name, NIB, prompts("x = 1\n"), max_tokens=2)
    assert found.verdict == verdict and bool(found.table) == (verdict == "measured")


def test_sets_are_calibrated_on_lines_of_code():
    text = (
        "import os\n\n\n" + "".join(f"def f{n}(x):\n    y = x + {n}\n    return y\n\n\n" for n in range(12)) + "z = 1\n"
    )
    found = bench("decode.search.pac", NIB, prompts(text), max_tokens=2)
    assert found.verdict == "holds" and [row["epsilon"] for row in found.table] == ["0.1", "0.2", "0.4"]
    assert found.table[2]["tau"] != "none"
