"""Every method of every room, unasked: what its record and its card promise. A new method is tested by being there."""

import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest
from rig import FREE, Strict, plain, requests, run

from steno.core import Card, Keeps, Plan, index
from steno.core.errors import KnobError, PlanError
from steno.decode.base import (
    About,
    AcceptorKnob,
    ConstraintKnob,
    DrafterKnob,
    ScheduleKnob,
    ScorerKnob,
    SearchKnob,
    ShaperKnob,
)
from steno.models import ModelSpec, load

INDEX = index.scan()
DECODE = [name for name in INDEX if name.startswith("decode.")]
TRAINED = [name for name in DECODE if "adapter" in INDEX[name]["fields"]]
"""Drafters with trained parts draft in `test_trained.py`, which has a model and adapters for them."""
DRAFTERS = [name for name in DECODE if name.startswith("decode.draft.") and name not in TRAINED]
ACCEPTORS = [name for name in DECODE if name.startswith("decode.accept.")]
SEARCHES = [name for name in DECODE if name.startswith("decode.search.")]
SHAPERS = [name for name in DECODE if name.startswith("decode.shape.")]
CONSTRAINTS = [name for name in DECODE if name.startswith("decode.constrain.")]


def build(name):
    """The knob with its defaults. Methods whose extra is not installed are skipped."""
    from steno.core.errors import MissingExtra

    try:
        return index.knob_class(name)()
    except MissingExtra as missing:
        pytest.skip(str(missing))


def test_the_room_is_whole():
    assert {n.rpartition(".")[2] for n in DRAFTERS} >= {"lookup", "suffix", "recycle"}
    assert {n.rpartition(".")[2] for n in ACCEPTORS} >= {"greedy", "gumbel", "residual"}
    assert {n.rpartition(".")[2] for n in SHAPERS} >= {"temperature", "top_k", "top_p", "min_p", "repetition"}


@pytest.mark.parametrize("name", INDEX)
def test_a_record_is_a_value(name):
    one, two = build(name), build(name)
    assert one == two and hash(one) == hash(two) and one.name == name
    assert pickle.loads(pickle.dumps(one)) == one
    assert isinstance(one.card, Card) and type(one).card.keeps in Keeps
    plan = Plan((one,))
    assert Plan.from_toml(plan.to_toml()) == plan
    assert index.make_knob(name, one.settings()) == one
    for field in fields(one):
        with pytest.raises(FrozenInstanceError):
            setattr(one, field.name, getattr(one, field.name))
    with pytest.raises(KnobError, match=f"{name} has no field 'no_such_field'"):
        index.make_knob(name, {"no_such_field": 1})


@pytest.mark.parametrize("name", DECODE)
def test_a_wrong_value_is_refused_with_the_field_s_name(name):
    knob = build(name)
    for field in fields(knob):
        # A text may be any text: there a number is wrong.
        wrong = 3 if isinstance(getattr(knob, field.name), str) else "nonsense"
        with pytest.raises(KnobError, match=f"{name}: {field.name} must be"):
            index.make_knob(name, {field.name: wrong})


@pytest.mark.parametrize("name", DECODE)
def test_a_method_imports_no_torch(name):
    code = f"import sys; import {INDEX[name]['module']}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", DECODE)
def test_rooms_have_their_knob(name):
    rooms = {
        "draft": DrafterKnob, "accept": AcceptorKnob, "constrain": ConstraintKnob, "shape": ShaperKnob,
        "search": SearchKnob, "score": ScorerKnob, "schedule": ScheduleKnob,
    }  # fmt: skip
    base = rooms[name.split(".")[1]]
    knob = build(name)
    assert isinstance(knob, base)
    assert knob.card.task == (base in (ShaperKnob, ScorerKnob, ConstraintKnob))
    if base not in (ShaperKnob, ScorerKnob):
        assert name.rpartition(".")[0] in knob.card.breaks


@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize("size", [1, 2, 7, 600])
def test_a_drafter_drafts_within_its_budget_from_any_prompt(name, size):
    drafter = build(name).open(3, 40)
    from steno.decode import Request

    for row in (2, 0):
        for prompt in (tuple([3] * size), tuple(i * 7 % 40 for i in range(size))):
            ids = list(prompt)
            drafter.start(row, Request(number=row, prompt=prompt))
            for budget in (1, 5, 255):
                before = list(ids)
                draft = drafter.propose(row, ids, budget)
                assert ids == before, "ids are the loop's"
                assert len(draft.tokens) <= budget
                assert len(draft.parents) == len(draft.tokens)
                assert len(draft.scores) in (0, len(draft.tokens))
                assert all(-1 <= p < i for i, p in enumerate(draft.parents))
                assert all(0 <= t < 40 for t in draft.tokens)
                above = [draft.scores[p] if p >= 0 else 1.0 for p in draft.parents] if draft.scores else []
                assert all(0 <= s <= a for s, a in zip(draft.scores, above, strict=False))
                ids.append(3)
            drafter.finish(row, ids)


@pytest.mark.parametrize("name", DRAFTERS)
def test_a_drafter_keeps_what_its_card_says(name):
    knob = build(name)
    assert knob.card.keeps == Keeps.BITS
    model = Strict(vocab=30, order=1, seed=6, end=4)
    asked = requests(8, vocab=30, seed=6)
    done = run(model, asked, knob, batch=3)
    assert [(c.tokens, c.finish) for c in done] == [plain(model, r) for r in asked]
    assert sum(c.stats.passes for c in done) < sum(c.stats.tokens for c in done)
    again = run(model, asked, knob, batch=3)
    assert [c.stats.histogram for c in again] == [c.stats.histogram for c in done]


@pytest.mark.parametrize("name", ACCEPTORS)
def test_an_acceptor_gives_the_same_tokens_again(name):
    model = Strict(vocab=30, order=1, seed=6)
    asked = requests(4, vocab=30, seed=6)
    knobs = build(name), build("decode.draft.suffix"), build("decode.shape.temperature")
    one, two = (run(model, asked, *knobs, batch=2, costs=FREE) for _ in range(2))
    assert [c.tokens for c in one] == [c.tokens for c in two]


def ground_for(knob):
    """A table model, or nib for what no table has: embeddings, hidden states, visibility."""
    model = Strict(vocab=20, order=2, seed=6, end=4)
    able = model.open(1, 8).caps
    return model if all(getattr(able, cap) for cap in knob.card.caps) else load(ModelSpec(source="nib"))


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_finds_whole_texts_again_and_is_refused_where_something_is_to_be_kept(name):
    knob = build(name)
    plan = Plan((knob, index.make_knob("decode.shape.temperature", {"temperature": 0.8})))
    for level in (Keeps.LAW, Keeps.TOKENS, Keeps.BITS):
        with pytest.raises(PlanError, match=f"{name} keeps near, and {level.value} is asked for"):
            plan.check(keep=level)
    for other in ("decode.draft.lookup", "decode.accept.greedy"):
        with pytest.raises(PlanError, match="cannot stand beside"):
            plan.with_knobs(build(other)).check()
    model = ground_for(knob)
    (end,) = model.eos
    for asked in (requests(5, vocab=20, seed=3, most=9), requests(2, vocab=20, seed=3, most=9, ignore_eos=True)):
        done = run(model, asked, *plan.knobs, batch=3)
        for completion in done:
            most = completion.request.max_tokens
            assert completion.finish == (
                "eos" if completion.tokens[-1:] == (end,) and not asked[0].ignore_eos else "length"
            )
            texts = [h.tokens for h in completion.found]
            assert completion.tokens == (texts[0] if most else ()) and len(set(texts)) == len(texts)
            assert [h.score for h in completion.found] == sorted((h.score for h in completion.found), reverse=True)
            for text in texts:
                ended = text[-1] == end and not completion.request.ignore_eos
                assert 1 <= len(text) <= most and (len(text) == most or ended)
                assert completion.request.ignore_eos or end not in text[:-1]
            assert not most or completion.stats.passes > 0
        again = run(model, asked[::-1], *plan.knobs, batch=1)[::-1]
        assert [c.found for c in again] == [c.found for c in done]


@pytest.mark.parametrize("name", SHAPERS)
def test_a_shaper_is_pure(name):
    shaper = build(name)
    rng = np.random.default_rng(0)
    for size in (1, 2, 5, 1001):
        logits = rng.normal(0, 4, size).astype(np.float32)
        logits[rng.random(size) < 0.2] = -np.inf
        logits[0] = 1.0
        past = tuple(rng.integers(0, size, 9).tolist())
        frozen = logits.copy()
        frozen.flags.writeable = False
        words = About(start=4, ends=frozenset({0}), text=lambda ids: "".join("if a\n"[i % 5] for i in ids))
        for about in (About(), words):
            one, two = (shaper.shape_within(frozen, ids, about) for ids in (past, list(past)))
            assert one.dtype == np.float32 and one.shape == logits.shape
            assert (one == two).all()
            assert about is words or (one == shaper.shape(frozen, past)).all()
            assert np.isfinite(one).any() and not np.isnan(one).any()
            assert not np.isfinite(one[~np.isfinite(logits)]).any(), "what is forbidden stays forbidden"
