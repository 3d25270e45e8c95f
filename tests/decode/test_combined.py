"""Drafters made of drafters: by hand, against naive oracles, nested, and with parts that want different things."""

import random
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from rig import FREE, Strict, plain, requests, run

from steno.core import Card, Keeps, Plan, make_knob
from steno.core.errors import KnobError, PlanError
from steno.decode import Request
from steno.decode.base import Draft, DrafterKnob, Seen
from steno.decode.draft.bass import Bass, adjust
from steno.decode.draft.best import Best
from steno.decode.draft.first import First
from steno.decode.draft.graft import Graft
from steno.decode.draft.jacobi import Jacobi
from steno.decode.draft.lookup import Lookup
from steno.decode.draft.recycle import Recycle
from steno.decode.draft.sjd import SpeculativeJacobi
from steno.decode.draft.suffix import Suffix
from steno.decode.draft.union import Union, merge

COMBINED = (First, Best, Union, Graft)


@dataclass(frozen=True, kw_only=True)
class Fixed(DrafterKnob):
    """Always the same draft; `asked` gathers what it was asked after."""

    card: ClassVar[Card] = Card(keeps="bits")
    asked: ClassVar[list[tuple[int, ...]]] = []

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    top: int = 0

    def open(self, rows, vocab):
        return _Fixed(self)


class _Fixed:
    laws = False

    def __init__(self, knob):
        self.knob, self.top, self.saw = knob, knob.top, []

    def start(self, row, request): ...

    def finish(self, row, ids): ...

    def observe(self, row, seen):
        self.saw.append(None if seen.top is None else (seen.top.shape, seen.logits.shape))

    def propose(self, row, ids, budget, ahead=()):
        Fixed.asked.append((*ids, *ahead))
        size = min(budget, len(self.knob.tokens))
        laws = np.full((size, 40), 1 / 40, np.float32)
        return Draft(self.knob.tokens[:size], self.knob.parents[:size], self.knob.scores[:size], laws, "fixed")


def fixed(tokens, scores, parents=None):
    return Fixed(tokens=tuple(tokens), parents=tuple(parents or range(-1, len(tokens) - 1)), scores=tuple(scores))


STRONG, WEAK, NONE = fixed([1, 2, 3], [0.9, 0.8, 0.7]), fixed([1, 4], [0.5, 0.4]), Fixed()


def propose(knob, budget=99, ids=(7, 8)):
    return knob.open(1, 40).propose(0, list(ids), budget)


def test_first_asks_the_second_only_where_the_first_promises_too_little():
    Fixed.asked.clear()
    assert propose(First(first=STRONG, second=WEAK, enough=2.4)).tokens == (1, 2, 3)
    assert len(Fixed.asked) == 1
    assert propose(First(first=STRONG, second=WEAK, enough=2.5)).tokens == (1, 4)
    assert propose(First(first=STRONG, second=NONE, enough=2.5)).tokens == (1, 2, 3)
    assert propose(First(first=NONE, second=NONE)).tokens == ()
    assert propose(First(first=NONE, second=First(first=NONE, second=WEAK))).tokens == (1, 4)


def test_best_takes_the_larger_sum_and_the_first_of_equals():
    assert propose(Best(first=WEAK, second=STRONG)).tokens == (1, 2, 3)
    wide = fixed([5, 6, 9], [0.4, 0.4, 0.1], [-1, -1, -1])
    assert propose(Best(first=wide, second=WEAK)).tokens == (5, 6, 9)
    assert propose(Best(first=fixed([3], [0.5]), second=fixed([4], [0.5]))).tokens == (3,)


def test_union_by_hand():
    draft = propose(Union(first=STRONG, second=WEAK))
    assert (draft.tokens, draft.parents, draft.scores) == ((1, 2, 3, 4), (-1, 0, 1, 0), (0.9, 0.8, 0.7, 0.4))
    assert propose(Union(first=STRONG, second=WEAK, num_tokens=3)).tokens == (1, 2, 3)
    assert propose(Union(first=WEAK, second=STRONG, num_tokens=3)).tokens == (1, 2, 3)


def paths(draft):
    out = []
    for token, parent in zip(draft.tokens, draft.parents, strict=True):
        out.append((*(out[parent] if parent >= 0 else ()), token))
    return out


def some_tree(rng):
    tokens, parents, scores = [], [], []
    for i in range(rng.randint(0, 9)):
        parent = rng.randint(-1, i - 1)
        tokens.append(rng.randrange(4))
        parents.append(parent)
        scores.append(rng.random() * (scores[parent] if parent >= 0 else 1.0))
    return Draft(tuple(tokens), tuple(parents), tuple(scores))


def test_union_against_a_dictionary_of_paths():
    rng = random.Random(0)
    for _ in range(300):
        drafts = [some_tree(rng), some_tree(rng)]
        best = {}
        for draft in drafts:
            for path, score in zip(paths(draft), draft.scores, strict=True):
                best[path] = max(score, best.get(path, 0.0))
        budget = rng.randint(1, 12)
        found = merge(drafts, budget, "u")
        got = dict(zip(paths(found), found.scores, strict=True))
        assert len(got) == len(found.tokens) == min(budget, len(best))
        assert all(best[path] == score for path, score in got.items())
        assert all(path[:-1] in got for path in got if len(path) > 1)
        left = [score for path, score in best.items() if path not in got]
        assert not left or max(left) <= min(got.values())


def test_graft_by_hand():
    Fixed.asked.clear()
    stock = fixed([1, 2, 5], [0.9, 0.8, 0.1], [-1, 0, -1])
    draft = propose(Graft(first=stock, second=WEAK, leaves=1))
    assert (draft.tokens, draft.parents) == ((1, 2, 5, 1, 4), (-1, 0, -1, 1, 3))
    assert draft.scores == pytest.approx((0.9, 0.8, 0.1, 0.8 * 0.5, 0.8 * 0.4))
    assert Fixed.asked == [(7, 8), (7, 8, 1, 2)]
    both = propose(Graft(first=stock, second=WEAK, leaves=2))
    assert both.parents[5:] == (2, 5)
    assert propose(Graft(first=stock, second=WEAK), budget=4).tokens == (1, 2, 5, 1)
    assert propose(Graft(first=stock, second=WEAK, num_tokens=1, leaves=1)).tokens == (1, 2, 5, 1)
    assert propose(Graft(first=NONE, second=WEAK)).tokens == (1, 4)


@pytest.mark.parametrize("knob", [Lookup(), Suffix(), Recycle(), make_knob("decode.draft.automaton", {})])
def test_what_is_supposed_to_follow_leaves_no_trace(knob):
    """A drafter asked ahead drafts as if the tokens had come, and afterwards as if it had not been asked."""
    text = [1, 2, 3, 4, 5, 1, 2, 3, 9, 9, 1]
    asked, never, after = (knob.open(1, 40) for _ in range(3))
    for drafter, prompt in ((asked, text), (never, text), (after, [*text, 2])):
        drafter.start(0, Request(number=0, prompt=tuple(prompt)))
        for token in range(1, 12):
            tops = np.array([[(token + r) % 40 for r in range(8)]], np.int32)
            drafter.observe(0, Seen(tokens=(token,), parents=(-1,), path=(0,), new=(0,), top=tops))
    assert asked.propose(0, text, 20, [2]).tokens[:3] == after.propose(0, [*text, 2], 20).tokens[:3] != ()
    assert asked.propose(0, text, 20) == never.propose(0, text, 20)
    grown = [*text, 2, 3, 4]
    assert asked.propose(0, grown, 20) == never.propose(0, grown, 20)


def test_parts_see_as_many_ids_as_they_asked_for():
    knob = Union(first=Fixed(top=3), second=Union(first=Fixed(), second=Fixed(top=1)))
    drafter = knob.open(1, 40)
    assert drafter.top == 3
    seen = Seen(
        tokens=(5, 6), parents=(-1, 0), path=(0,), new=(1,), top=np.zeros((2, 3), np.int32),
        logits=np.zeros((2, 3), np.float32),
    )  # fmt: skip
    drafter.observe(0, seen)
    inner = drafter.drafters[1].drafters
    assert (drafter.drafters[0].saw, inner[0].saw, inner[1].saw) == ([((2, 3), (2, 3))], [None], [((2, 1), (2, 1))])


def test_laws_are_dropped_because_the_choice_may_look_at_what_was_sampled():
    for kind in COMBINED:
        assert propose(kind(first=STRONG, second=WEAK)).laws is None
    assert propose(First(first=SpeculativeJacobi(), second=NONE)).laws is None
    assert SpeculativeJacobi().open(1, 40).propose(0, [7, 8], 99).laws is not None


@pytest.mark.parametrize("kind", COMBINED)
def test_combinations_nest_in_toml_and_keep_the_text(kind):
    inner = Graft(first=Suffix(alpha=1.0), second=Jacobi(window=3))
    knob = kind(first=Lookup(max_ngram=2), second=inner)
    plan = Plan((knob,))
    again = Plan.from_toml(plan.to_toml())
    assert again == plan and hash(again) == hash(plan)
    assert [k.name for k in plan.whole()] == [
        knob.name, "decode.draft.lookup", "decode.draft.graft", "decode.draft.suffix", "decode.draft.jacobi",
    ]  # fmt: skip
    model = Strict(vocab=30, order=2, seed=6, end=4)
    asked = requests(6, vocab=30, seed=2)
    done = run(model, asked, knob, batch=3, costs=FREE)
    assert [(c.tokens, c.finish) for c in done] == [plain(model, r) for r in asked]
    assert sum(c.stats.accepted for c in done) > 0


def test_a_nested_knob_is_set_from_the_command_line_and_its_errors_are_its_own():
    plan = Plan().set("decode.draft.first.second", '{ name = "decode.draft.suffix", max_depth = 8 }')
    assert plan.knobs[0].second == Suffix(max_depth=8)
    assert plan.set("decode.draft.first.enough", "2.0").knobs[0].second == Suffix(max_depth=8)
    with pytest.raises(KnobError, match=r"decode.draft.suffix has no field 'max_dept'. Did you mean max_depth"):
        Plan().set("decode.draft.first.second", '{ name = "decode.draft.suffix", max_dept = 8 }')
    with pytest.raises(KnobError, match="second takes a knob with its name"):
        Plan().set("decode.draft.first.second", "{ max_depth = 8 }")
    with pytest.raises(KnobError, match="second must be DrafterKnob, got "):
        Plan().set("decode.draft.first.second", '{ name = "decode.shape.top_k" }')


def test_a_plan_keeps_what_its_nested_knobs_keep():
    @dataclass(frozen=True, kw_only=True)
    class Loose(Fixed):
        card: ClassVar[Card] = Card(keeps="near", backends=("hf",))

    plan = Plan((First(first=Lookup(), second=Loose()),))
    assert plan.keeps is Keeps.NEAR
    with pytest.raises(PlanError, match="keeps near, and tokens is asked for"):
        plan.check(keep=Keeps.TOKENS)
    with pytest.raises(PlanError, match="does not run on the native backend"):
        plan.check("native")


def test_bass_by_hand():
    """7, full hit: 9; a miss: 8; a miss in a row: 6; never below what was accepted, nor above 32."""
    assert adjust(7, 0, [(7, True)]) == (9, 0)
    assert adjust(9, 0, [(3, False), (0, False)]) == (8, 1)
    assert adjust(8, 1, [(3, False)]) == (6, 1)
    assert adjust(8, 1, [(7, False)]) == (7, 1)
    assert adjust(31, 0, [(31, True)]) == (32, 0)
    assert adjust(1, 1, [(0, False)]) == (1, 1)


def test_bass_has_one_length_for_the_batch():
    drafter = Bass(drafter=fixed(range(1, 33), [0.9] * 32), length=7).open(2, 40)
    for row in range(2):
        drafter.start(row, Request(number=row, prompt=(1,)))

    def step(*accepted):
        lengths = [len(drafter.propose(row, [1], 99).tokens) for row in range(2)]
        for row, count in enumerate(accepted):
            nodes = tuple(range(lengths[row] + 1))
            drafter.observe(
                row, Seen(tokens=nodes, parents=tuple(range(-1, lengths[row])), path=nodes[: count + 1], new=(0,))
            )
        return lengths

    assert step(7, 0) == [7, 7]
    assert step(2, 0) == [9, 9]
    assert step(8, 1) == [8, 8]
    assert step(3, 2) == [10, 10]
    draft = drafter.propose(0, [1], 99)
    assert draft.kept == len(draft.tokens) == 9
