"""Constraints: masks against brute force, and texts that drafts, batches, trees and beams do not change."""

import itertools
import json
from functools import cache

import jsonschema
import numpy as np
import pytest
from rig import DRAFTERS, FREE, KINDS, Hostile, Strict, run, softmax

from steno.core import Plan, index
from steno.core.errors import CapsError, KnobError, PlanError, PromptError
from steno.decode import Request, generate
from steno.decode._fence import Trail
from steno.decode.accept.residual import Residual
from steno.decode.base import Draft, Hypothesis
from steno.decode.search.diverse_beam import DiverseBeam
from steno.decode.search.lattice import Lattice
from steno.decode.shape.temperature import Temperature
from steno.tokens import Words

pytest.importorskip("llguidance")

from steno.decode.constrain.choice import Choice
from steno.decode.constrain.json_schema import JsonSchema
from steno.decode.constrain.lark import Lark
from steno.decode.constrain.prefix import Prefix
from steno.decode.constrain.regex import Regex

MERGED = (
    b'{"',
    b'":',
    b'"}',
    b"true",
    b"rue",
    b'"a"',
    b"alse,",
    b"1}",
    b',"',
    b"], [",
    b"  ",
    b'\n"',
    "ü".encode(),
    b"12",
)
TABLE = (*[bytes([byte]) for byte in range(256)], *MERGED, b"", b"", b"")
END, OTHER = len(TABLE) - 1, len(TABLE) - 2
"""Two ends, and one id that writes nothing."""


def longest(data: bytes) -> list[int]:
    return Words(table=TABLE, ends=(OTHER, END), encode=list).longest(data)


WORDS = Words(table=TABLE, ends=(OTHER, END), encode=longest)


def written(tokens) -> str:
    return b"".join(TABLE[token] for token in tokens).decode("utf-8", "replace")


class Model(Strict):
    @property
    def eos(self):
        return frozenset((OTHER, END))


@cache
def model(seed: int = 0, **more) -> Model:
    return Model(vocab=len(TABLE), order=2, seed=seed, end=END, **more)


def ask(*knobs, seed: int = 0, number: int = 0, most: int = 80, on: Strict | None = None, **more):
    requests = [Request(number=number, prompt=(1, 2, number % 7), max_tokens=most, seed=seed)]
    return run(on or model(seed), requests, *knobs, words=WORDS, text=written, **more)[0]


OBJECT = {
    "type": "object",
    "properties": {"a": {"type": "boolean"}, "ab": {"enum": ["x", "xy", 7]}, "c": {"type": "null"}},
    "required": ["a"],
    "additionalProperties": False,
}
FINITE = [
    (OBJECT, [
        {"a": a, **b, **c}
        for a in (True, False) for b in ({}, *({"ab": v} for v in ("x", "xy", 7))) for c in ({}, {"c": None})
    ]),
    ({"type": "integer", "minimum": -3, "maximum": 12}, list(range(-3, 13))),
    ({"type": "integer", "multipleOf": 4, "exclusiveMinimum": 0, "maximum": 20}, [4, 8, 12, 16, 20]),
    ({"enum": (mixed := ["", "a", "ab", "ü", 'q"', None, [1, [2]], {"z": 0}])}, mixed),
    (
        {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
        [list(v) for n in (1, 2, 3) for v in itertools.product((True, False), repeat=n)],
    ),
    ({"type": "string", "pattern": "^[ab]{1,2}$"}, ["a", "b", "aa", "ab", "ba", "bb"]),
    ({"oneOf": [{"const": 1}, {"const": "1"}], "type": ["string", "integer"]}, [1, "1"]),
    (
        {"$defs": {"t": {"items": {"$ref": "#/$defs/t"}, "type": "array"}}, "$ref": "#/$defs/t", "maxItems": 0},
        [[]],
    ),
]  # fmt: skip


def dumped(value) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


@pytest.mark.parametrize("schema, instances", FINITE, ids=[json.dumps(s)[:40] for s, _ in FINITE])
def test_masks_are_those_of_brute_force(schema, instances):
    """Everywhere: exactly the tokens that some allowed text goes on with, no more and no less."""
    for value in instances:
        jsonschema.Draft202012Validator(schema).validate(value)
    # JSON writes zero in two ways, and llguidance allows both where numbers below zero are allowed.
    texts = {dumped(value) for value in instances} | ({b"-0"} if -1 in instances else set())
    start = JsonSchema(schema=json.dumps(schema), whitespace=0).open(WORDS)
    todo, seen = [(b"", start)], {b""}
    while todo:
        done, place = todo.pop()
        rests = [text[len(done) :] for text in texts if text.startswith(done)]
        allowed = {t for t, word in enumerate(TABLE) if word and any(rest.startswith(word) for rest in rests)}
        allowed |= {END, OTHER} if b"" in rests else set()
        assert set(np.flatnonzero(place.mask()).tolist()) == allowed, done
        assert {t for t in range(-2, len(TABLE) + 2) if place.allows(t)} == allowed, done
        forced = b"".join(TABLE[t] for t in place.forced())
        assert all(rest.startswith(forced) for rest in rests)
        for token in allowed - {END, OTHER}:
            if (then := done + TABLE[token]) not in seen:
                seen.add(then)
                todo.append((then, place.advance(token)))
        assert set(np.flatnonzero(place.mask()).tolist()) == allowed, "going on changes nothing here"
    assert texts <= seen


WIDE = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 2},
        "at": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 99}, {"type": "null"}]},
        "inner": {"type": "object", "properties": {"deep": {"const": "fixed text"}}, "required": ["deep"],
                  "additionalProperties": False},
    },
    "required": ["name", "tags", "at", "inner"],
    "additionalProperties": False,
}  # fmt: skip
KNOBS = {
    "json_schema": JsonSchema(schema=json.dumps(WIDE)),
    "choice": Choice(texts=("yes", "yes, of course", "no")),
    "regex": Regex(pattern="[0-9]{2}-(jan|feb)"),
    "lark": Lark(grammar='start: "f(" ARG ("," ARG){1,2} ")"\nARG: /[a-c]{1,3}/'),
}
HOLDS = {
    "json_schema": lambda text: jsonschema.Draft202012Validator(WIDE).is_valid(json.loads(text)),
    "choice": lambda text: text in KNOBS["choice"].texts,
    "regex": lambda text: text[2:] in ("-jan", "-feb") and text[:2].isdecimal() and len(text) == 6,
    "lark": lambda text: text[:2] == "f(" and 2 <= len(text[2:-1].split(",")) <= 3 and set(text[2:]) <= set("abc,)"),
}


def naive(asked: Request, knob, on: Strict) -> list[int]:
    """One token at a time: of all that the mask leaves, the best; the constraint is walked anew for every token."""
    out: list[int] = []
    while len(out) < asked.max_tokens and (not out or out[-1] not in on.eos):
        place = knob.open(WORDS)
        for token in out:
            place = place.advance(token)
        logits = on.row([*asked.prompt, *out])
        out.append(int(np.where([place.allows(t) for t in range(len(TABLE))], logits, -np.inf).argmax()))
    return out


@pytest.mark.parametrize("name", KNOBS)
def test_text_is_that_of_one_masked_token_at_a_time(name):
    knob = KNOBS[name]
    for number in range(2):
        done = ask(knob, number=number, most=150)
        assert list(done.tokens) == naive(done.request, knob, model())
        assert done.finish == "eos" and HOLDS[name](done.text), done.text


def test_what_is_forced_takes_one_pass():
    done = ask(JsonSchema(schema='{"const": {"a": true}}', whitespace=0))
    assert done.text == '{"a":true}' and done.finish == "eos"
    assert done.stats.passes < len(done.tokens)
    slow = ask(JsonSchema(schema='{"const": {"a": true}}', whitespace=0, spans=False))
    assert slow.tokens == done.tokens and slow.stats.passes == len(slow.tokens) and slow.stats.drafted == 0


@pytest.mark.parametrize("drafter", [None, *DRAFTERS], ids=lambda d: d.name if d else "none")
@pytest.mark.parametrize("shapers", [(), (Temperature(temperature=0.7),)], ids=["greedy", "gumbel"])
def test_drafts_and_batches_change_no_token(drafter, shapers):
    knobs = list(KNOBS.values())
    asked = [
        Request(
            number=n,
            prompt=tuple(range(1, 2 + n % 5)),
            max_tokens=60,
            seed=3,
            constrain=knobs[n % 4] if n % 5 else None,
        )
        for n in range(9)
    ]
    plain = [run(model(), [r], *shapers, words=WORDS)[0].tokens for r in asked]
    more = () if drafter is None else (drafter,)
    for batch in (1, 4):
        done = run(model(), asked, *shapers, *more, words=WORDS, text=written, batch=batch)
        assert [c.tokens for c in done] == plain
        for completion in done:
            if completion.request.constrain is not None and completion.finish == "eos":
                assert HOLDS[completion.request.constrain.name.rpartition(".")[2]](completion.text)
    assert any(c.finish == "eos" for c in done)


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_drafts_change_no_token(kind, monkeypatch):
    monkeypatch.setattr(Hostile, "model", model(), raising=False)
    plain = ask(KNOBS["json_schema"], number=2)
    for on in (model(), model(tree=False), model(inexact=True)):
        assert ask(KNOBS["json_schema"], Hostile(kind=kind), number=2, on=on).tokens == plain.tokens


def test_residual_acceptance_keeps_the_masked_law():
    """First tokens of a choice of three letters, sampled through drafts that are mostly unlawful: TV under 0.06."""
    knob, small = Choice(texts=("a", "b", "c")), model(5)
    Hostile.model = small
    law = softmax(np.where(knob.open(WORDS).mask(), small.row([4]), -np.inf))
    asked = [Request(number=n, prompt=(4,), max_tokens=2, constrain=knob) for n in range(600)]
    done = run(small, asked, Residual(), Temperature(temperature=1.0), Hostile(kind="sampled"), words=WORDS, batch=50)
    counts = np.bincount([c.tokens[0] for c in done], minlength=len(TABLE)) / len(done)
    assert 0.5 * np.abs(counts - law).sum() < 0.06


@pytest.mark.parametrize("search", [DiverseBeam(groups=2, width=2), Lattice(beams=3, texts=6)], ids=lambda k: k.name)
@pytest.mark.parametrize("name", KNOBS)
def test_searches_find_only_texts_that_hold(search, name):
    done = ask(KNOBS[name], search, most=60)
    assert done.found
    for found in done.found:
        trail = Trail(KNOBS[name].open(WORDS))
        assert trail.allows(found.tokens)
        if found.tokens[-1] in (END, OTHER):
            assert HOLDS[name](written(found.tokens[:-1]))


def test_a_search_of_its_own_ways_is_held_to_the_constraint(monkeypatch):
    monkeypatch.setattr(DiverseBeam, "search", lambda self, ground: [Hypothesis((9, END), 0.0)])
    with pytest.raises(CapsError, match="found no text that its constraint allows"):
        ask(KNOBS["choice"], DiverseBeam())


def test_a_prefix_is_written_and_then_anything():
    done = ask(Prefix(text="tru"), most=5)
    assert done.text.startswith("tru")
    start = Prefix(text="ab").open(WORDS)
    assert {t for t, ok in enumerate(start.mask()) if ok} == {ord("a")}
    wide = Prefix(text="tru").open(WORDS)
    assert wide.allows(TABLE.index(b"true")) and wide.allows(ord("t")) and not wide.allows(ord("r"))
    free = wide.advance(TABLE.index(b"true"))
    assert free.mask().all() and free.advance(END).allows(3)
    assert ask(Prefix(text="")).tokens == ask().tokens
    lined = ask(Prefix(text="ab", lines=1), most=400)
    assert lined.finish == "eos" and "\n" not in lined.text[2:].strip("\n")
    place = Prefix(text="a", lines=2).open(WORDS)
    for token in longest(b"ab\n \nc"):
        place = place.advance(token)
    assert place.mask().all() and np.flatnonzero(place.advance(10).mask()).tolist() == [OTHER, END]
    # It ends nothing, so a model without an end token can write it.
    (open_ended,) = generate(
        model(), [Request(number=0, prompt=(1,), max_tokens=3, ignore_eos=True)], Plan((Prefix(text="x"),)), words=WORDS
    )
    assert open_ended.tokens[0] == ord("x")


def test_shapers_act_on_what_may_come():
    """Of two allowed letters one has nearly no mass in the whole law: the nucleus of what may come keeps both."""
    from steno.decode.shape.top_k import TopK

    knob = Choice(texts=("a", "b"))
    seen = {ask(knob, Temperature(temperature=5.0), TopK(k=2), seed=0, number=n).text for n in range(20)}
    assert seen == {"a", "b"}


def test_who_cannot_be_constrained_is_told():
    knob = KNOBS["choice"]
    with pytest.raises(PlanError, match=r"pass words=Words.of\(tokenizer"):
        generate(model(), [Request(number=0, prompt=(1,))], Plan((knob,)))
    with pytest.raises(PromptError, match="needs an end token, and the request ignores it"):
        run(model(), [Request(number=0, prompt=(1,), ignore_eos=True)], knob, words=WORDS)
    endless = Strict(vocab=len(TABLE))
    with pytest.raises(PromptError, match="needs an end token, and the model declares none"):
        run(endless, [Request(number=0, prompt=(1,))], knob, words=WORDS)
    with pytest.raises(PlanError, match="cannot stand beside"):
        Plan((knob, KNOBS["regex"])).check()
    few = Words(table=(b"x", b""), ends=(1,), encode=list)
    for start in (knob.open(few), Regex(pattern="a").open(few)):
        with pytest.raises(CapsError, match="no token of this vocabulary writes"):
            start.mask()


NOT_HELD = {
    "not": {"not": {"type": "string"}}, "if": {"if": {}, "then": False}, "else": {"if": {}, "else": False},
    "contains": {"contains": {}}, "minContains": {"contains": {}, "minContains": 2},
    "uniqueItems": {"uniqueItems": True},
    "dependencies": {"dependencies": {"a": ["b"]}}, "dependentRequired": {"dependentRequired": {"a": ["b"]}},
    "dependentSchemas": {"dependentSchemas": {"a": False}}, "propertyNames": {"propertyNames": {"maxLength": 1}},
    "unevaluatedItems": {"unevaluatedItems": False}, "unevaluatedProperties": {"unevaluatedProperties": False},
    "$dynamicRef": {"$dynamicRef": "#a"}, "$recursiveRef": {"$recursiveRef": "#"}, "disallow": {"disallow": "string"},
    "extends": {"extends": {}}, "divisibleBy": {"divisibleBy": 2}, "x-guidance": {"x-guidance": {"lenient": True}},
    "format 'regex'": {"format": "regex"}, "format 'unknown'": {"format": "unknown"},
    "prefixItems": {"prefixItems": [False], "additionalItems": False}, "minProperties 2": {"minProperties": 2},
    "const with 9007199254740993": {"const": 9007199254740993},
    "enum with 9007199254740993": {"enum": [[9007199254740993]]},
    "$schema of another draft": {"$schema": "http://json-schema.org/draft-06/schema#"},
}  # fmt: skip
SCHEMAS = "http://json-schema.org/draft-04/schema#", "https://json-schema.org/draft-07/schema", None


@pytest.mark.parametrize("words", NOT_HELD)
def test_what_is_not_held_is_named_in_every_draft(words):
    for draft in SCHEMAS:
        schema = {"properties": {"p": {"allOf": [NOT_HELD[words]]}}} | ({"$schema": draft} if draft else {})
        with pytest.raises(KnobError) as refused:
            JsonSchema(schema=json.dumps(schema))
        assert f"{words} " in str(refused.value) and "#/properties/p/allOf/0" in str(refused.value)
        named = json.loads(str(refused.value).partition("ignore=")[2].rstrip("'."))
        assert words.split()[0] in named
    JsonSchema(schema=json.dumps(schema), ignore=tuple(named))


@pytest.mark.parametrize("schema, words", [
    ("", "it is no JSON"),
    ("[]", "a schema is an object, true or false"), ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
    ('{"maximum": NaN}', "NaN is no JSON"), ("[" * 100_000, "nested too deeply"),
    ('{"$schema": "http://json-schema.org/draft-03/schema#"}', "draft-03/schema#' is unknown"),
    ('{"pattern": "(?=a)"}', "look-around"), ('{"oneOf": [{}, {"type": "null"}]}', "oneOf"),
    ("false", "schema is false"),
    ('{"$ref": "http://example.com/x"}', "http://example.com/x"), ('{"type": "nonsense"}', "Invalid type: nonsense"),
])  # fmt: skip
def test_schemas_that_cannot_be_read_are_refused_with_the_reason(schema, words):
    with pytest.raises(KnobError, match=r"decode.constrain.json_schema: schema must be") as refused:
        JsonSchema(schema=schema)
    assert words in str(refused.value)


def test_what_says_nothing_is_listed_and_what_asks_nothing_is_let_go():
    quiet = {"uniqueItems": False, "then": False, "minContains": 2, "not": False, "dependencies": {},
             "propertyNames": True, "unevaluatedItems": {},
             "items": {"maxItems": 1, "uniqueItems": True, "if": {"type": "null"}}}  # fmt: skip
    assert JsonSchema(schema=json.dumps(quiet)).notes == ()
    named = {"x-order": 3, "type": "integer", "format": "int32", "nullable": True, "title": "t", "deprecated": True}
    assert JsonSchema(schema=json.dumps(named)).notes == ("x-order", "nullable", "format 'int32' of what is no string")
    counted = {"type": "array", "items": {"const": 1}, "maxItems": 1.0, "minItems": 1.0}
    assert ask(JsonSchema(schema=json.dumps(counted), whitespace=0)).text == "[1]"
    JsonSchema(schema='{"$schema": "http://json-schema.org/draft-07/schema#", "items": '
                      '{"$schema": "https://json-schema.org/draft-07/schema"}}')  # fmt: skip
    # A name that happens to be a keyword is no keyword.
    JsonSchema(schema='{"properties": {"not": {"const": "if"}}, "required": ["not"], "default": {"not": 1}}')


def test_bad_patterns_grammars_and_choices_are_refused():
    for make, words in (
        (lambda: Regex(pattern="("), "pattern must be .* unclosed group"),
        (lambda: Lark(grammar="begin: x"), "grammar must be"),
        (lambda: Lark(grammar='start: %json {"not": {}}'), "must not hold %json"),
        (lambda: Choice(texts=()), "texts must be different texts"),
        (lambda: Choice(texts=("a", "a")), "texts must be different texts"),
        (lambda: Choice(texts=("",)), "texts must be different texts"),
    ):
        with pytest.raises(KnobError, match=words):
            make()


def test_a_draft_keeps_nodes_that_a_drafter_wants_to_see():
    from steno.decode._fence import lawful, led

    place = Choice(texts=("ab", "ac")).open(WORDS)
    draft = Draft((ord("z"), ord("a"), ord("c"), ord("q")), (-1, -1, 1, 1), (0.5, 0.5, 0.4, 0.1), None, "s", 1)
    assert lawful(draft, place).tokens == (ord("z"), ord("a"), ord("c"))
    assert lawful(Draft((ord("z"),), (-1,)), place).tokens == ()
    both = led((5, 6), Draft((7, 8), (-1, -1), (0.5, 0.25)))
    assert both.tokens == (5, 6, 7, 8) and both.parents == (-1, 0, 1, 1) and both.scores == (1.0, 1.0, 0.5, 0.25)


@pytest.mark.parametrize("name", [n for n in index.scan() if n.startswith("decode.constrain.")])
def test_every_constraint_is_a_value_of_places(name):
    """Unasked: masks agree with `allows`, going on leaves no trace, after an end only ends, drafts change nothing."""
    knob = index.knob_class(name)()
    place = knob.open(WORDS)
    rng = np.random.default_rng(0)
    for _ in range(12):
        mask = place.mask()
        assert mask.dtype == np.bool_ and mask.shape == (len(TABLE),) and mask.any()
        assert [place.allows(t) for t in range(len(TABLE))] == mask.tolist()
        walk = place
        for token in place.forced():
            assert walk.allows(token)
            walk = walk.advance(token)
        assert (place.mask() == mask).all()
        if mask[END] and knob.closes:
            over = place.advance(END)
            assert np.flatnonzero(over.mask()).tolist() == [OTHER, END] and not over.allows(1) and not over.forced()
        lawful = [t for t in np.flatnonzero(mask).tolist() if t not in (END, OTHER)]
        if not lawful:
            break
        place = place.advance(int(rng.choice(lawful)))
    drafted = ask(knob, DRAFTERS[2], costs=FREE, most=20)
    assert drafted.tokens == ask(knob, most=20).tokens
