"""Conditional beam search: by hand, against a naive beam search, and with no condition."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
from rig import Strict, naive_beam, scripted, search

from steno.core import Card
from steno.decode.base import Candidate, ScorerKnob
from steno.decode.search.conditional_beam import LEAST, ConditionalBeam

HOLDS = 0.9


@dataclass(frozen=True, kw_only=True)
class Holds(ScorerKnob):
    """Whether the text holds a token."""

    card: ClassVar[Card] = Card(task=True)

    token: int = 1

    def score(self, candidate: Candidate) -> float:
        return HOLDS if self.token in candidate.tokens else 1 - HOLDS


Holds.__module__ = "steno.decode.score.holds"


def test_the_mode_given_an_attribute_by_hand():
    """The empty text is the mode; among texts that hold a 1 it is 1 0. log 0.3 + log 0.9 > log 0.7 + log 0.1."""
    model = scripted({(): [0.6, 0.3, 0.1], (1,): [0.9, 0.05, 0.05]}, 3, end=0)
    plain = search(model, ConditionalBeam(weight=0.0, length_power=0.0), 3)
    assert plain.tokens == (0,)
    done = search(model, ConditionalBeam(attribute=Holds(), length_power=0.0), 3)
    assert done.tokens == (1, 0)
    assert done.found[0].score == pytest.approx(math.log(0.3 * 0.9 * 0.9))


@pytest.mark.parametrize("beams", [1, 3, 5])
@pytest.mark.parametrize("weight", [0.0, 1.0, 4.0])
def test_it_is_beam_search_over_the_sum(beams, weight):
    def worth(text):
        return weight * math.log(HOLDS if 1 in text else 1 - HOLDS)

    for seed in range(4):
        model = Strict(vocab=7, seed=seed, end=2)
        knob = ConditionalBeam(attribute=Holds(), weight=weight, beams=beams, pool=5, length_power=0.7)
        want = naive_beam(model, (1, 3), beams, 8, 0.7, worth, pool=5)
        found = search(model, knob, 8, (1, 3)).found
        assert [h.tokens for h in found] == [text for text, _ in want]
        assert [h.score for h in found] == pytest.approx([score for _, score in want], abs=1e-5)


def test_a_score_of_nothing_is_bounded_and_one_forward_serves_all_beams():
    @dataclass(frozen=True, kw_only=True)
    class Never(ScorerKnob):
        card: ClassVar[Card] = Card(task=True)

        def score(self, candidate):
            return 0.0

    Never.__module__ = "steno.decode.score.never"
    model = Strict(vocab=7, seed=1)
    done = search(model, ConditionalBeam(attribute=Never()), 6)
    plain = search(model, ConditionalBeam(weight=0.0), 6)
    assert [h.tokens for h in done.found] == [h.tokens for h in plain.found] and done.stats.passes == 6
    assert done.found[0].score == pytest.approx(plain.found[0].score + math.log(LEAST))
