"""NMST: by hand, its bound for every law, and the texts that have to end."""

import math

import numpy as np
import pytest
from rig import Strict, plain, requests, run, softmax

from steno.core import Plan
from steno.decode import Request
from steno.decode.base import About
from steno.decode.draft.suffix import Suffix
from steno.decode.search.diverse_beam import DiverseBeam
from steno.decode.shape.nmst import Nmst
from steno.decode.shape.temperature import Temperature
from steno.decode.shape.top_p import TopP


def shaped(law, past, **fields):
    with np.errstate(divide="ignore"):
        logits = np.log(np.array(law, np.float32))
    return softmax(Nmst(**fields).shape_within(logits, past, About(start=2, ends=frozenset({0}))))


def test_by_hand():
    """f(1) = 1/2 and f(2) = 3/4 at epsilon 1/2: the end gets that share of what it had not."""
    assert shaped([0.2, 0.6, 0.2], [5, 5], epsilon=0.5) == pytest.approx([0.6, 0.3, 0.1])
    assert shaped([0.2, 0.6, 0.2], [5, 5, 1], epsilon=0.5) == pytest.approx([0.8, 0.15, 0.05])
    # Forbidden ends stay forbidden, and a longer text may be less ready to end than a shorter one.
    assert shaped([0.0, 0.5, 0.5], [5, 5], epsilon=0.5) == pytest.approx([0, 0.5, 0.5])
    assert shaped([0.9, 0.1], [5, 5])[0] > shaped([0.1, 0.9], [5, 5, 1, 1, 1])[0]


def test_the_end_is_never_less_probable_than_the_bound():
    rng = np.random.default_rng(0)
    for t in (1, 7, 100, 5000):
        law = rng.dirichlet(np.full(30, 0.1))
        out = shaped(law, [1] * (1 + t))
        assert out.sum() == pytest.approx(1) and out[0] >= 1 - (1 - 5e-4) ** t - 1e-6
        rest = law[1:] / law[1:].sum()
        np.testing.assert_allclose(out[1:] / out[1:].sum(), rest, atol=1e-5)


def test_several_ends_share_as_they_did():
    law = np.log(np.array([0.1, 0.3, 0.6], np.float32))
    out = softmax(Nmst(epsilon=0.5).shape_within(law, [], About(ends=frozenset({0, 1, 99}))))
    assert out == pytest.approx([0.175, 0.525, 0.3])


@pytest.mark.parametrize("knobs", [(), (Temperature(temperature=0.7), TopP(p=0.5)), (DiverseBeam(groups=1),)])
def test_every_text_ends_in_time(knobs):
    """The model gives its end next to nothing. From p_end > 1/2 on greedy and a nucleus of 1/2 hold nothing else."""
    epsilon = 0.05
    latest = math.ceil(math.log(0.5) / math.log(1 - epsilon)) + 1
    model = Strict(vocab=9, script=lambda past: [-25.0, *np.sin(np.arange(8) * (1 + sum(past)))], end=0)
    asked = [Request(number=n, prompt=(1, n), max_tokens=60) for n in range(4)]
    assert all(c.finish == "length" for c in run(model, asked, *knobs))
    done = run(model, asked, Nmst(epsilon=epsilon), *knobs)
    assert all(c.finish == "eos" for c in done)
    assert max(len(c.tokens) for c in done) <= latest + 1


def test_drafts_change_nothing_and_ignored_ends_leave_it_idle():
    model = Strict(vocab=20, order=1, seed=3, end=4)
    asked = requests(6, vocab=20, seed=2)
    knob = Nmst(epsilon=0.03)
    done = run(model, asked, knob, Suffix(), batch=3)
    assert [(c.tokens, c.finish) for c in done] == [plain(model, r, Plan((knob,))) for r in asked]
    assert sum(c.stats.accepted for c in done) > 0
    free = requests(2, vocab=20, seed=2, ignore_eos=True)
    assert [c.tokens for c in run(model, free, knob)] == [c.tokens for c in run(model, free)]
