"""PG-TD: by hand, the laws of its tree, and real tests on real programs."""

import json
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from rig import Strict, scripted, search, softmax

from steno.core import Card, Plan
from steno.core.errors import PlanError, UserError
from steno.decode import Request, generate
from steno.decode._sandbox import passed
from steno.decode.base import Candidate, ScorerKnob
from steno.decode.score import tests as unit
from steno.decode.score.likelihood import Likelihood
from steno.decode.score.tests import UnitTests
from steno.decode.search import pgtd
from steno.decode.search.pgtd import Pgtd

ASKED: list[tuple[int, ...]] = []


@dataclass(frozen=True, kw_only=True)
class Sum(ScorerKnob):
    """Worth by the sum of a whole text, and a note of what was asked."""

    card: ClassVar[Card] = Card(task=True)

    modulus: int = 7

    def score(self, candidate: Candidate) -> float:
        assert candidate.whole
        ASKED.append(candidate.tokens)
        return sum(candidate.tokens) % self.modulus / self.modulus


Sum.__module__ = "steno.decode.score.sum"


@dataclass(frozen=True, kw_only=True)
class Is(ScorerKnob):
    """1 for one text."""

    card: ClassVar[Card] = Card(task=True)

    wanted: tuple[int, ...] = ()

    def score(self, candidate: Candidate) -> float:
        return float(candidate.tokens == self.wanted)


Is.__module__ = "steno.decode.score.is"


def test_it_leaves_the_greedy_trap():
    """Greedy takes 1 1; only 2 0 is right. Rollouts: 1 1, then the child 2, whose greedy end is 2 0."""
    model = scripted({(): [0.1, 0.6, 0.3], (1,): [0.2, 0.7, 0.1], (2,): [0.8, 0.1, 0.1]}, 3)
    done = search(model, Pgtd(reward=Is(wanted=(2, 0))), 2)
    assert done.tokens == (2, 0) and done.found[0].score == 1.0
    assert search(model, Pgtd(reward=Is(wanted=(2, 0)), rollouts=1), 2).tokens == (1, 1)
    # The laws after nothing, 1 and 2: each was asked for once.
    assert done.stats.passes == 3


def test_one_child_is_greedy_and_wide_trees_find_the_best():
    model = Strict(vocab=4, seed=1)
    greedy, ids = [], [0]
    for _ in range(3):
        ids.append(int(model.row(ids).argmax()))
        greedy.append(ids[-1])
    assert search(model, Pgtd(width=1), 3).tokens == tuple(greedy)
    done = search(model, Pgtd(width=4, rollouts=200, reward=Sum(modulus=10)), 3)
    assert len(done.found) == 64 and done.found[0].score == 0.9 and done.found[0].tokens == (3, 3, 3)


@pytest.fixture
def nodes(monkeypatch):
    """Every node that a search makes."""
    made = []

    class Kept(pgtd.Node):
        __slots__ = ()

        def __init__(self, *fields):
            super().__init__(*fields)
            made.append(self)

    monkeypatch.setattr(pgtd, "Node", Kept)
    return made


@pytest.mark.parametrize("seed", range(3))
def test_a_node_is_worth_the_best_below_it_and_counts_what_went_through(nodes, seed):
    model = Strict(vocab=6, seed=seed, end=2)
    ASKED.clear()
    done = search(model, Pgtd(reward=Sum(), rollouts=30), 6)
    assert len(done.found) > 10
    worth = {h.tokens: h.score for h in done.found}
    root = nodes[0]
    assert root.visits <= 30 and root.value == max(worth.values())
    for node in nodes:
        below = [value for text, value in worth.items() if text[: len(node.text.tokens)] == node.text.tokens]
        assert node.value <= max(below, default=0.0)
        if node.children:
            own = node.visits - sum(child.visits for child in node.children)
            assert node.value == max(child.value for child in node.children) and own in (0, 1)
    assert len(ASKED) == len(set(ASKED)) == len(done.found), "no text is judged twice"


def test_children_are_chosen_by_the_paper_s_rule():
    parent, child = pgtd.Node(None, 1.0, visits=5), pgtd.Node(None, 0.3, visits=2, value=0.4)
    beta = math.log((5 + 10 + 1) / 10) + 4
    assert Pgtd()._worth(parent, child) == pytest.approx(0.4 + beta * 0.3 * math.sqrt(math.log(5)) / 3)


def test_likelihood_is_the_geometric_mean():
    model = Strict(vocab=6, seed=1)
    done = search(model, Pgtd(), 3)
    for h in done.found:
        law = [softmax(model.row([0, *h.tokens[:i]]))[v] for i, v in enumerate(h.tokens)]
        assert h.score == pytest.approx(np.prod(law) ** (1 / 3), rel=1e-5)
    assert Likelihood().score(Candidate(prompt=(0,), tokens=(), logs=(), whole=False)) == 1.0


WORDS = ["def add(a, b):\n", "    return a ", "- b\n", "+ b\n", "* b\n"]
"""A model of five words that likes to subtract."""


def text(ids):
    return "".join(WORDS[i] for i in ids)


def coder():
    likes = {(): [0, 0.99, 0, 0, 0.01], (1,): [0, 0, 0.7, 0.2, 0.1]}
    return scripted(likes, 5)


def plan(tmp_path, *rows, **fields):
    file = tmp_path / "tests.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return Plan((Pgtd(reward=UnitTests(file=str(file), **fields)),))


def test_programs_are_really_run(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(unit, "passed", lambda program, tests, **limits: ran.append(program) or passed(program, tests))
    unit._passed.cache_clear()
    tests = plan(tmp_path, {"tests": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"]})
    asked = [Request(number=n, prompt=(0,), max_tokens=2) for n in range(2)]
    one, two = generate(coder(), asked, tests, text=text)
    assert text(one.tokens) == "    return a + b\n" and one.found[0].score == 1.0
    assert one.found[1].score == 0.5, "0 - 0 is 0"
    assert two.found == one.found and len(ran) == len(set(ran)), "the second request runs nothing again"


def test_tests_belong_to_their_prompt(tmp_path):
    tests = plan(tmp_path, {"tests": ["assert False"]}, {"prompt": WORDS[0], "tests": ["assert add(3, 2) == 1"]})
    (done,) = generate(coder(), [Request(number=0, prompt=(0,), max_tokens=2)], tests, text=text)
    assert text(done.tokens) == "    return a - b\n"


def test_what_is_wrong_with_tests_is_said(tmp_path):
    asked = [Request(number=0, prompt=(0,), max_tokens=2)]
    with pytest.raises(UserError, match="judges words, and there are none"):
        generate(coder(), asked, plan(tmp_path, {"tests": ["pass"]}))
    with pytest.raises(UserError, match=r"needs a file of tests.*name ="):
        generate(coder(), asked, Plan((Pgtd(reward=UnitTests()),)), text=text)
    with pytest.raises(UserError, match="there is no file"):
        generate(coder(), asked, Plan((Pgtd(reward=UnitTests(file=str(tmp_path / "no"))),)), text=text)
    with pytest.raises(UserError, match="no tests for the prompt"):
        generate(coder(), asked, plan(tmp_path, {"prompt": "other", "tests": ["pass"]}), text=text)
    with pytest.raises(UserError, match="line 1: expected"):
        generate(coder(), asked, plan(tmp_path, {"tests": [1]}), text=text)


def test_a_plan_with_tests_reads_back(tmp_path):
    made = plan(tmp_path, {"tests": ["pass"]}, seconds=1.5)
    assert Plan.from_toml(made.to_toml()) == made


def test_marks_are_no_words():
    def words(ids):
        return "".join(["<s>", "x", "<end>", "<"][i] for i in ids)

    judged = Candidate(prompt=(0, 1), tokens=(3, 2), logs=(), whole=True, ends=frozenset({2}), text=words)
    assert judged.read("me") == ("x", "x<")
    assert Candidate(prompt=(3, 1), tokens=(), logs=(), whole=True, text=words).read("me") == ("<x", "<x")


def test_a_scorer_by_itself_is_refused():
    with pytest.raises(PlanError, match=r"decode\.score\.tests stands in a field of a search"):
        generate(coder(), [], Plan((UnitTests(),)))
