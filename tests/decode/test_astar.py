"""A*-decoding: what it expands with a perfect scorer, uniform-cost order, its samples, and real syntax."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from rig import Strict, search, softmax

from steno.core import Card, Plan
from steno.core.errors import UserError
from steno.decode import Request, generate
from steno.decode.base import Candidate, ScorerKnob
from steno.decode.score.syntax import Syntax, first_error
from steno.decode.search import astar
from steno.decode.search.astar import Astar

ASKED: list[Candidate] = []


@dataclass(frozen=True, kw_only=True)
class Count(ScorerKnob):
    """The share of tokens that are `token`, and a note of who asked."""

    card: ClassVar[Card] = Card(task=True)

    token: int = 1

    def score(self, candidate: Candidate) -> float:
        ASKED.append(candidate)
        return candidate.tokens.count(self.token) / len(candidate.tokens)


Count.__module__ = "steno.decode.score.count"


@pytest.fixture
def opened(monkeypatch):
    """The texts that a search expands, in order."""
    ASKED.clear()
    made = []
    whole = Astar._continue

    def kept(self, walker, ground, text, mark):
        made.append(text.tokens)
        return whole(self, walker, ground, text, mark)

    monkeypatch.setattr(astar.Astar, "_continue", kept)
    return made


def test_with_a_perfect_scorer_only_the_right_way_is_expanded(opened):
    model = Strict(vocab=4, script=lambda past: [0.0] * 4)
    done = search(model, Astar(reward=Count(), k=24, step_tokens=1, budget=100), 5)
    assert done.tokens == (1,) * 5 and done.found[0].score == 1.0
    assert opened == [(1,) * n for n in range(5)]
    assert len(ASKED) <= 24 * len(opened) and len({c.tokens for c in ASKED}) == len(ASKED), "no text is judged twice"
    assert [c.whole for c in ASKED] == [len(c.tokens) == 5 for c in ASKED]


def test_without_a_heuristic_the_order_is_that_of_cost(opened):
    """Naive uniform-cost search over the texts that were judged expands in the same order."""
    model = Strict(vocab=3, seed=2, script=lambda past: [0.0] * 3)
    search(model, Astar(reward=Count(), k=9, step_tokens=1, heuristic=0.0, budget=12, goals=64), 4)
    worth = {c.tokens: c.tokens.count(1) / len(c.tokens) for c in ASKED}
    order = {(): -1} | {c.tokens: i for i, c in enumerate(ASKED)}

    def cost(text):
        return sum(1 - worth[text[:n]] for n in range(1, len(text) + 1))

    front = {()}
    for text in opened:
        assert text == min(front, key=lambda t: (cost(t), order[t]))
        front.remove(text)
        front |= {t for t in worth if t[:-1] == text}
        while any(len(t) == 4 and t == min(front, key=lambda t: (cost(t), order[t])) for t in front):
            front.remove(min(front, key=lambda t: (cost(t), order[t])))


def test_samples_follow_the_model_s_law(monkeypatch):
    logits = [0.0, 1.0, -1.0, 0.5, 0.2]
    found = []
    whole = Astar._continue
    monkeypatch.setattr(astar.Astar, "_continue", lambda *a: found.append(whole(*a)) or found[-1])
    for seed in range(40):
        search(Strict(vocab=5, script=lambda past: logits), Astar(k=64, budget=1), 1, seed=seed)
    drawn = np.bincount([text.tokens[0] for texts in found for text in texts], minlength=5) / (40 * 64)
    assert np.abs(drawn - softmax(np.array(logits))).sum() / 2 < 0.04
    assert found[0] != found[1], "another seed, other samples"


def test_a_spent_budget_still_gives_a_whole_text():
    model = Strict(vocab=9, seed=2, end=3)
    done = search(model, Astar(reward=Count(), budget=1, step_tokens=2), 8)
    assert len(done.tokens) == 8 or done.tokens[-1] == 3
    assert len(done.found) == 1


WORDS = ["x = (1,\n", "y = = 2\n", "2)\n", "if x:\n", "    pass\n", "z"]


def text(ids):
    return "".join(WORDS[i] for i in ids)


def judge(tokens, whole=False):
    return Syntax().score(Candidate(prompt=(3,), tokens=tokens, logs=(0.0,) * len(tokens), whole=whole, text=text))


def test_syntax_by_hand():
    assert judge((4,)) == judge((4, 0)) == judge((4, 0, 2)) == 1.0
    assert judge((4, 1)) == 0.5, "the second of two lines is wrong"
    assert judge((4, 1, 5)) == 0.5 and judge((4, 5)) == 1.0, "a line that is not whole is not judged"
    assert judge((0, 2)) == 0.0, "no block after the prompt's if"
    assert first_error("(" * 300) in (1, None) and first_error("a\0b") == 1
    with pytest.raises(UserError, match="judges words, and there are none"):
        Syntax().score(Candidate(prompt=(0,), tokens=(1,), logs=(0.0,), whole=True))


def test_it_writes_lines_that_parse():
    """Steps are lines. The model likes the broken one best; the search goes round it."""
    model = Strict(vocab=6, script=lambda past: [0, 2, 0, 0, 1, -9])
    plan = Plan((Astar(reward=Syntax(), k=12, budget=60),))
    (done,) = generate(model, [Request(number=0, prompt=(3,), max_tokens=4)], plan, text=text)
    assert 1 not in done.tokens and judge(done.tokens, whole=True) == 1.0
