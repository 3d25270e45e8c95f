"""The conformance kit passes what is right and fails when any one rule is broken."""

import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import sabotage

from steno.cache.window import Window
from steno.core import Keeps, Plan, make_knob
from steno.core.errors import PlanError, PromptError
from steno.decode.accept import residual
from steno.measure import Status, from_json, to_json
from steno.measure._lab import Broken, same
from steno.measure.base import Verdict
from steno.measure.conform import verify
from steno.models.table import TableModel, TableSession

MODEL = TableModel(vocab=24, seed=1)
LOOPING = TableModel(vocab=24, seed=1, order=2)
LOOKUP = make_knob("decode.draft.lookup", {})
HOT = make_knob("decode.shape.temperature", {"temperature": 0.8})
GREEDY = Plan((LOOKUP,))
PENALTY = Plan((LOOKUP, make_knob("decode.shape.repetition", {})))
GUMBEL = Plan((LOOKUP, HOT, make_knob("decode.accept.gumbel", {})))
RESIDUAL = Plan((LOOKUP, HOT, make_knob("decode.accept.residual", {})))
FORM = Window(sinks=0, window=6, block=4)


def small(model, plan):
    """A run that is quick and has everything in it."""
    return verify(model, plan, rows=(1, 3), tokens=10)


@pytest.mark.parametrize(
    "plan", [Plan(), GREEDY, PENALTY, GUMBEL, RESIDUAL], ids=lambda p: "+".join(k.name for k in p.knobs)
)
@pytest.mark.parametrize("model", [MODEL, LOOPING], ids=["hash", "looping"])
def test_what_is_right_passes(model, plan):
    verdict = small(model, plan)
    assert verdict.passed, [(c.name, c.detail) for c in verdict.failed]
    assert verdict.keeps is plan.keeps
    assert from_json(to_json(verdict), Verdict) == verdict
    states = {c.name: c.status for c in verdict.checks}
    assert states["bits.view"] is states["session.commit"] is states["edge.eos"] is Status.PASS
    # A check says why it does not apply.
    assert all(c.detail for c in verdict.checks if c.status is Status.SKIP)
    assert all(c.rule and c.cases for c in verdict.checks if c.status is Status.PASS)


BREAKS = [
    (sabotage.bonus_token_kv_missing, GREEDY, "ids.chain.1"),
    (sabotage.draft_accepted_unverified, GREEDY, "ids.chain.1"),
    (sabotage.wrong_row, GREEDY, "ids.none.3"),
    (sabotage.shaped_at_the_pending_token_only, PENALTY, "ids.chain.1"),
    (sabotage.shaped_at_the_pending_token_only, PENALTY, "bits.view"),
    (sabotage.shaped_by_siblings, PENALTY, "bits.view"),
    (sabotage.one_key_per_block, GUMBEL, "ids.chain.1"),
    (sabotage.noise_by_call_order, GUMBEL, "ids.order"),
    (sabotage.end_token_only_stops_the_loop, GREEDY, "edge.eos"),
    (sabotage.overshoot, GREEDY, "edge.length"),
    (sabotage.refilled_row_keeps_its_past, GREEDY, "ids.none.3"),
    (sabotage.first_twin_walked_past, GREEDY, "ids.tree.1"),
    (sabotage.one_key_per_block, RESIDUAL, "bits.view"),
    (sabotage.end_token_only_stops_the_loop, RESIDUAL, "edge.eos"),
    (sabotage.laws_of_drafts_lost, RESIDUAL, "bits.laws"),
    (sabotage.coin_of_zero_accepts, RESIDUAL, "law.zero"),
    (sabotage.not_renormalised, RESIDUAL, "law.variation"),
    (sabotage.resampled_from_the_model, RESIDUAL, "law.variation"),
    (sabotage.q_is_not_what_was_sampled_from, RESIDUAL, "law.variation"),
]


@pytest.mark.parametrize(("breakage", "plan", "check"), BREAKS, ids=lambda v: getattr(v, "__name__", None))
def test_a_broken_loop_or_acceptor_fails(monkeypatch, breakage, plan, check):
    breakage(monkeypatch)
    verdict = small(MODEL, plan)
    assert not verdict.passed
    found = {c.name: c.detail for c in verdict.failed}
    assert check in found, found
    assert found[check]


@pytest.mark.parametrize("plan", [GREEDY, GUMBEL, RESIDUAL], ids=["greedy", "gumbel", "residual"])
def test_one_wrong_bit_fails_though_every_id_is_right(monkeypatch, plan):
    """The last bit of one logit, at nodes of drafts alone: no id changes, and each check of bits sees it."""
    sabotage.last_bit(TableSession, 2)(monkeypatch)
    found = {c.name: c.detail for c in small(LOOPING, plan).failed}
    assert {"bits.own", "bits.chain", "bits.tree", "bits.view"} <= set(found)
    assert "bits are promised, and 1 of 24 logits differ, by up to" in found["bits.own"]
    assert not [name for name in found if name.startswith(("ids.", "edge.", "law."))]


def test_zero_and_minus_zero_are_different_bits():
    zeros = np.zeros(3, np.float32)
    assert same(zeros, zeros.copy(), Keeps.BITS, "here") == 0
    with pytest.raises(Broken, match="here: bits are promised, and 3 of 3 logits differ"):
        same(-zeros, zeros, Keeps.BITS, "here")
    with pytest.raises(Broken, match="bits are promised"):
        same(zeros[:2], zeros, Keeps.BITS, "here")


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (sabotage.IndexPositions, "session.siblings"),
        (sabotage.IndexPositions, "bits.tree"),
        (sabotage.SiblingsVisible, "session.siblings"),
        (sabotage.UniformOffsets, "session.commit"),
        (sabotage.UniformPositions, "session.rows"),
        (sabotage.UniformPositions, "ids.none.3"),
        (sabotage.PaddingCommitted, "session.padding"),
        (sabotage.ForwardLeavesTrace, "session.forward"),
        (sabotage.ForkShares, "session.fork"),
    ],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_a_broken_session_fails(kind, check):
    verdict = small(sabotage.session(kind), GREEDY)
    found = {c.name: c.detail for c in verdict.failed}
    assert check in found, found


def test_cache_forms_must_not_depend_on_the_schedule():
    plan = GREEDY.with_knobs(FORM)
    good = small(sabotage.Halved(vocab=24, seed=1), plan)
    assert good.passed, [(c.name, c.detail) for c in good.failed]
    numbers = {c.name: c.numbers for c in good.checks}
    assert numbers["cache.schedule"]["changes_of_form"] >= 3
    bad = small(sabotage.Halved(vocab=24, seed=1, again=True), plan)
    assert {"cache.schedule", "ids.chain.1"} <= {c.name for c in bad.failed}


def test_room_that_reaches_over_a_seal_fails(monkeypatch):
    monkeypatch.setattr(
        sabotage.HalvedSession, "room", lambda self: tuple(self.capacity - len(row) for row in self._rows)
    )
    verdict = small(sabotage.Halved(vocab=24, seed=1), GREEDY.with_knobs(FORM))
    assert "cache.room" in {c.name for c in verdict.failed}


def test_a_bias_of_a_twentieth_is_found(monkeypatch):
    """Power: five per cent of total variation, spread over the law, is seen."""
    exact = residual.draw

    def bent(law, coin):
        law = law.copy()
        order = law.argsort()[::-1]
        # Move 5 % of the mass from the upper half of the ids to the lower.
        half = [i for i in order[::2] if law[i] > 0]
        moved = 0.05 * law.sum()
        share = law[half] / law[half].sum()
        law[half] -= share * moved
        law[order[1]] += moved
        return exact(law, coin)

    monkeypatch.setattr(residual, "draw", bent)
    verdict = small(MODEL, RESIDUAL)
    assert "law.variation" in {c.name for c in verdict.failed}


def test_a_failure_says_where():
    verdict = small(sabotage.session(sabotage.UniformPositions), GREEDY)
    detail = next(c.detail for c in verdict.failed if c.name == "ids.none.3")
    assert "prompt " in detail
    assert "position " in detail
    assert "plain decoding gives" in detail


def test_a_crash_is_a_finding(monkeypatch):
    def crash(self, rows):
        raise RuntimeError("the device is gone")

    monkeypatch.setattr("steno.models.table.TableSession.fork", crash)
    (check,) = small(MODEL, GREEDY).failed
    assert (check.name, check.detail) == ("session.fork", "RuntimeError: the device is gone")


def test_prompts_of_the_user_are_tried():
    seen = []

    class Spied(TableModel):
        names: ClassVar = None

        def open(self, batch, capacity, cache=None):
            session = super().open(batch, capacity, cache)
            take = session.prefill
            session.prefill = lambda prompts, last=False: (seen.extend(map(tuple, prompts)), take(prompts, last=last))[
                1
            ]
            return session

    own = [7, 7, 7, 3, 7, 7, 7]
    verdict = verify(Spied(vocab=24, seed=1), GREEDY, rows=(1, 3), tokens=4, prompts=[own])
    assert verdict.passed
    assert tuple(own[:-1]) in seen
    assert verdict.covered == "5 prompts of 1 to 21 tokens, 4 tokens each, batches of 1, 3, seeds 0"


def test_checks_are_told_as_they_end():
    told = []
    verdict = verify(MODEL, Plan(), rows=(1,), tokens=4, on_check=told.append)
    assert tuple(told) == verdict.checks


def test_small_contexts_and_vocabularies():
    for model in (TableModel(vocab=2, seed=3, context=32), TableModel(vocab=24, context=24)):
        verdict = verify(model, GREEDY, rows=(1, 3), tokens=6)
        assert verdict.passed, [(c.name, c.detail) for c in verdict.failed]


def test_what_cannot_be_verified_is_refused():
    with pytest.raises(PlanError, match="does not run on the table backend"):
        verify(MODEL, Plan((make_knob("cache.affine", {}),)))
    with pytest.raises(PromptError, match="token id 24 is outside"):
        verify(MODEL, Plan(), prompts=[[24]])
    assert GREEDY.keeps is Keeps.BITS
