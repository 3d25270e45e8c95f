"""`steno run` under a constraint: what is written, what is refused, and how it ends."""

import json
from pathlib import Path

import jsonschema
import pytest
from cli_tools import steno

pytest.importorskip("llguidance")

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 4}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "n"],
    "additionalProperties": False,
}


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    return path


@pytest.mark.parametrize("backend", ["native", "hf"])
def test_a_schema_is_held_on_both_backends(tiny: Path, schema: Path, backend: str):
    ran = steno("run", tiny, "value: ", "--backend", backend, "--schema", schema, "--json")
    assert ran.code == 0, ran.err
    done = json.loads(ran.out)
    jsonschema.validate(json.loads(done["text"]), SCHEMA)
    assert done["finish"] == "eos" and done["drafted"] > 0
    slow = steno("run", tiny, "value: ", "--backend", backend, "--schema", schema, "--json",
                 "--set", "decode.constrain.json_schema.spans=false")  # fmt: skip
    assert json.loads(slow.out)["tokens"] == done["tokens"] and json.loads(slow.out)["drafted"] == 0


def test_a_schema_takes_the_place_of_the_plan_s_and_keeps_its_settings(tiny: Path, schema: Path, tmp_path: Path):
    plan = tmp_path / "plan.toml"
    plan.write_text('steno = 1\n[[knob]]\nname = "decode.constrain.json_schema"\nschema = "{}"\nwhitespace = 0\n')
    ran = steno("run", tiny, "x", "--plan", plan, "--schema", schema)
    assert ran.code == 0 and set(json.loads(ran.out)) == {"name", "n"} and ran.out.count("\n") == 1


def test_a_text_that_is_cut_is_an_error_of_its_own(tiny: Path, schema: Path):
    ran = steno("run", tiny, "x", "--schema", schema, "--max-tokens", "5")
    assert ran.code == 1
    assert "ended by length before it was what decode.constrain.json_schema asks for. Raise --max-tokens." in ran.err


def test_what_a_schema_says_without_effect_is_said(tiny: Path, tmp_path: Path):
    path = tmp_path / "s.json"
    path.write_text('{"type": "boolean", "x-order": 1, "titel": "typo"}')
    ran = steno("run", tiny, "x", "--schema", path)
    assert ran.code == 0 and ran.out.strip() in ("true", "false")
    assert "not held, because JSON Schema says that it asserts nothing: x-order, titel" in ran.err


def test_bad_schemas_are_refused(tiny: Path, tmp_path: Path):
    path = tmp_path / "s.json"
    path.write_text('{"properties": {"a": {"uniqueItems": true}}}')
    steno("run", tiny, "x", "--schema", path).refused(
        "uniqueItems at #/properties/a", """--set 'decode.constrain.json_schema.ignore=["uniqueItems"]'"""
    )
    ignored = steno("run", tiny, "x", "--schema", path, "--max-tokens", "3",
                    "--set", 'decode.constrain.json_schema.ignore=["uniqueItems"]')  # fmt: skip
    assert ignored.code == 1 and "before it was what" in ignored.err
    steno("run", tiny, "x", "--schema", tmp_path / "none.json").refused("none.json cannot be read")
    path.write_bytes(b"\xff")
    steno("run", tiny, "x", "--schema", path).refused("is not UTF-8")
    path.write_text("{")
    steno("run", tiny, "x", "--schema", path).refused("it is no JSON")
    steno("run", tiny, "--schema", "-", stdin="{}").refused("cannot both come from stdin")
    path.write_text("{}")
    steno("run", "table:300:0", "1 2", "--schema", path).refused("Table models have no tokenizer")


def test_other_constraints_come_by_the_plan(tiny: Path):
    ran = steno("run", tiny, "x", "--set", 'decode.constrain.choice.texts=["red", "green"]')
    assert ran.code == 0 and ran.out.strip() in ("red", "green")
    matched = steno("run", tiny, "x", "--set", 'decode.constrain.regex.pattern="[ab]{3}"')
    assert matched.code == 0 and set(matched.out.strip()) <= set("ab") and len(matched.out.strip()) == 3


def test_a_tuning_holds_its_constraint_in_every_arm(tiny: Path, schema: Path):
    """A lab knows what tokens write, and a drafter beside the constraint changes no token."""
    from steno.core import Plan, make_knob
    from steno.models import ModelSpec
    from steno.tune.job import open_subject
    from steno.tune.lab import ModelLab
    from steno.tune.prompts import parse, prepare

    subject = open_subject(ModelSpec(source=str(tiny)))
    tasks, _ = prepare(parse(b"one\n\ntwo two two", "p.txt"), subject.tokenizer, 259, 256, max_tokens=64, seed=0)
    lab = ModelLab(subject.model, subject.tokenizer, 256)
    held = Plan((make_knob("decode.constrain.json_schema", {"schema": schema.read_text()}),))
    drafted = held.with_knobs(make_knob("decode.draft.suffix", {}))
    for task in tasks:
        one, two = (lab.run(plan, (task,)) for plan in (held, drafted))
        assert not one.error and one.outs[0].tokens == two.outs[0].tokens
        assert subject.tokenizer is not None
        jsonschema.validate(json.loads(subject.tokenizer.decode(one.outs[0].tokens[:-1])), SCHEMA)
