"""Self-infilling on a scripted model with sentinels: by hand, its budgets, and what it is without sentinels."""

import numpy as np
import pytest
from rig import Strict, rollout, search

from steno.core import Plan
from steno.decode import Request, generate
from steno.decode.search.self_infilling import SelfInfilling

PRE, SUF, MID, END = 10, 11, 12, 0
FIM = {"prefix": PRE, "suffix": SUF, "middle": MID}


def model(says, unsure=(), vocab=13):
    """Says `says[past]` after a past, with a third of the law where the past is in `unsure`, and 9 elsewhere."""

    def script(past):
        law = np.full(vocab, 1e-6)
        law[says.get(past, 9)] = 0.2 if past in unsure else 1.0
        law[5] += 0.15 if past in unsure else 0.0
        law[7:10] += 0.14 if past in unsure else 0.0
        return np.log(law)

    return Strict(vocab=vocab, script=script, end=END)


def test_an_interruption_by_hand():
    """1 | 2 and then unsure: the suffix 4 5 comes first, then the middle 3; the text goes on behind it to its end."""
    says = {
        (1,): 2, (1, 2): 6,
        (PRE, 1, 2, SUF): 4, (PRE, 1, 2, SUF, 4): 5, (PRE, 1, 2, SUF, 4, 5): MID,
        (PRE, 1, 2, SUF, 4, 5, MID): 3, (PRE, 1, 2, SUF, 4, 5, MID, 3): END,
        (1, 2, 3, 4, 5): 8, (1, 2, 3, 4, 5, 8): END,
    }  # fmt: skip
    unsure = {(1, 2)}
    done = search(model(says, unsure), SelfInfilling(**FIM, loops=0), 12, (1,))
    assert done.tokens == (2, 3, 4, 5, 8, END)
    # Never interrupted it takes the 6 of which it was unsure.
    assert search(model(says, unsure), SelfInfilling(**FIM, tau=0.0), 3, (1,)).tokens[:2] == (2, 6)
    assert search(model(says, unsure), SelfInfilling(), 3, (1,)).tokens[:2] == (2, 6)


def test_a_turn_writes_suffix_and_middle_anew():
    """Behind 2 3 the model would go on with 7 to the end; between 2 and 7 it puts 4."""
    says = {
        (1,): 2, (1, 2): 6, (PRE, 1, 2, SUF): 5, (PRE, 1, 2, SUF, 5): MID, (PRE, 1, 2, SUF, 5, MID): 3,
        (PRE, 1, 2, SUF, 5, MID, 3): END, (1, 2, 3): 7, (1, 2, 3, 7): END,
        (PRE, 1, 2, SUF, 7, MID): 4, (PRE, 1, 2, SUF, 7, MID, 4): END, (1, 2, 4, 7): END,
    }  # fmt: skip
    knob = SelfInfilling(**FIM, loops=1)
    assert search(model(says, {(1, 2)}), knob, 12, (1,)).tokens == (2, 4, 7, END)


def test_a_cue_begins_the_suffix():
    says = {
        (1,): 2, (1, 2): 6, (PRE, 1, 2, SUF, 4, 4): 5, (PRE, 1, 2, SUF, 4, 4, 5): MID,
        (PRE, 1, 2, SUF, 4, 4, 5, MID): END, (1, 2, 4, 4, 5): END,
    }  # fmt: skip
    knob = SelfInfilling(**FIM, cue=(4, 4), loops=0)
    assert search(model(says, {(1, 2)}), knob, 12, (1,)).tokens == (2, 4, 4, 5, END)
    # Where the cue does not fit there is nothing to interrupt for: the text ends as it would have.
    assert len(search(model(says, {(1, 2)}), knob, 2, (1,)).tokens) == 2


@pytest.mark.parametrize("loops", [0, 1, 3])
def test_budgets_hold_and_no_sentinel_gets_out(loops):
    for seed in range(8):
        table = Strict(vocab=13, seed=seed, end=END, order=3)
        for most in (1, 2, 3, 7, 20):
            knob = SelfInfilling(**FIM, tau=0.9, loops=loops, suffix_tokens=4, cue=(4,))
            done = search(table, knob, most, (1, 3))
            assert not {PRE, SUF, MID} & set(done.tokens)
            assert len(done.tokens) == most or done.tokens[-1] == END
            asked = Request(number=0, prompt=(1, 3), max_tokens=most)
            (tight,) = generate(table, [asked], Plan((knob,)), capacity=3)
            assert len(tight.tokens) == min(most, 2) or tight.tokens[-1] == END


def test_without_sentinels_it_is_greedy():
    table = Strict(vocab=13, seed=2)
    assert search(table, SelfInfilling(tau=1.0), 9).tokens == tuple(rollout(table, (0,), 9))
