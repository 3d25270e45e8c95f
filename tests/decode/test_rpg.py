"""RPG: by hand, against counting units naively, and through the loop under drafts."""

import numpy as np
import pytest
from rig import Strict, plain, requests, run

from steno.core import Plan
from steno.decode.base import About
from steno.decode.draft.suffix import Suffix
from steno.decode.shape.rpg import Rpg, kinds, repeated

WORDS = ["\n", "if", " x", " y", " == 1", ":", "    ", "pass", " 27", "<end>"]


def text(ids):
    return "".join(WORDS[i % len(WORDS)] for i in ids)


def change(past, **fields):
    """By word, the factor on its odds: what the shaper adds to flat logits."""
    about = About(ends=frozenset({9}), text=text)
    out = Rpg(**fields).shape_within(np.zeros(len(WORDS), np.float32), past, about)
    return {WORDS[i]: float(np.exp(add)) for i, add in enumerate(out) if add}


IF_X = [1, 2, 4, 5, 0, 6, 7, 0]
"""if x == 1: / pass"""
IF_Y = [1, 3, 8, 5, 0, 6, 7, 0]
"""if y 27: / pass"""


def test_a_repeated_statement_by_hand():
    """The same two lines twice and three times: `if` pays 0.9 to that power, and a keyword lets the text end."""
    assert change(IF_X) == {}
    assert change(IF_X * 2) == pytest.approx({"if": 0.9**2, "<end>": 0.8**-2})
    assert change(IF_X * 3, decay=0.5) == pytest.approx({"if": 0.5**3, "<end>": 0.8**-3})
    # Within a line, and where the unit has another length, nothing repeats.
    assert change(IF_X * 2 + [1]) == {}
    assert change(IF_X + IF_Y) == {}


def test_names_and_numbers_do_not_hide_a_repetition():
    renamed = [1, 3, 4, 5, 0, 6, 7, 0]
    assert renamed != IF_X and change(IF_X + renamed) == change(IF_X * 2)
    assert kinds("if x == 1:") == kinds("if y == 27:") != kinds("if x == y:")


def test_an_indented_unit_is_met_behind_its_indentation():
    lines = [6, 7, 0] * 2
    assert change(lines) == {}, "the line has no indentation yet"
    assert change([*lines, 6]) == pytest.approx({"pass": 0.9**2, "<end>": 0.8**-2})
    # A space of it may come with the word. A name begins this unit: no end is offered.
    assert change([2, 4, 0, 3, 4, 0]) == pytest.approx({" x": 0.9**2, " y": 0.9**2})
    assert change([7, 0] * 2 + [6]) == {}, "deeper than the unit"


def test_without_text_or_a_past_nothing_changes():
    logits = np.arange(10, dtype=np.float32)
    assert Rpg().shape_within(logits, IF_X * 3, About()) is logits
    assert Rpg().shape_within(logits, [], About(text=text)) is logits


def naive_times(lines, longest):
    """How often the best unit ends the lines, by comparing whole lists."""
    counts = [
        max(n for n in range(1, len(lines) // size + 1) if lines[-size * n :] == lines[-size:] * n)
        for size in range(1, min(longest, len(lines)) + 1)
    ]
    return max(counts, default=0)


def test_units_against_brute_force():
    rng = np.random.default_rng(0)
    for size in (0, 1, 2, 5, 12, 30):
        for letters in (1, 2, 3):
            lines = [("0", str(n)) for n in rng.integers(0, letters, size)]
            for longest in (1, 3, 8):
                assert repeated(lines, longest)[1] == naive_times(lines, longest)


def cycle(past):
    """A model that goes on writing IF_X, with some noise of the whole past."""
    noise = np.random.default_rng([len(past), sum(past)]).normal(0, 0.5, len(WORDS))
    here = next((i for i in range(1, len(IF_X)) if tuple(IF_X[i - 1 : i + 1]) == past[-2:]), 0)
    noise[IF_X[(here + 1) % len(IF_X)]] += 3
    return noise


def test_drafts_change_nothing():
    model = Strict(vocab=len(WORDS), script=cycle, end=9)
    asked = requests(4, vocab=9, seed=2)
    knob = Rpg(decay=0.05)
    done = run(model, asked, knob, Suffix(), batch=3, text=text)
    assert [(c.tokens, c.finish) for c in done] == [plain(model, r, Plan((knob,)), text) for r in asked]
    assert sum(c.stats.accepted for c in done) > 0
    assert [c.tokens for c in done] != [c.tokens for c in run(model, asked, text=text)]
