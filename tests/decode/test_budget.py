"""The budget: what pays is drafted, what does not is not, and the choice follows from costs and history alone."""

import random
from itertools import pairwise

import numpy as np
import pytest
from rig import DRAFTERS, FREE, Strict, requests, run

from steno.decode import CostTable
from steno.decode._budget import Budget
from steno.decode._trim import fit, keep
from steno.decode.base import Draft
from steno.decode.draft.lookup import Lookup
from steno.decode.draft.recycle import Recycle

LINE = CostTable({1: 1.0, 257: 257.0})


def chain(length, claim=0.9, source="x"):
    return Draft.chain([1] * length, [claim ** (i + 1) for i in range(length)], source)


def sizes(budget, *drafts):
    return [len(d.tokens) for d in budget.choose(drafts)]


def test_costs_between_and_beyond_what_was_measured():
    table = CostTable({1: 1.0, 4: 4.0, 8: 2.0})
    assert [table.at(w) for w in (1, 2, 4, 6, 8, 20)] == [1, 2, 4, 3, 2, 2]
    assert CostTable({1: 3.0}).at(64) == 3.0
    assert CostTable({1: 1.0, 2: 2.0}).at(5) == 5.0
    for wrong in ({}, {2: 1.0}, {1: 0.0}, {0: 1.0, 1: 1.0}):
        with pytest.raises(ValueError, match="positive seconds by width, and width 1 among them"):
            CostTable(wrong)


def test_free_width_takes_all_and_dear_width_takes_none():
    assert sizes(Budget(FREE, 256), chain(200)) == [200]
    assert sizes(Budget(LINE, 256), chain(200, 0.99)) == [0]
    assert sizes(Budget(FREE, 256), Draft()) == [0]


def test_a_dip_in_the_costs_is_found():
    """Width 8 is cheaper than width 4 here, so 7 tokens are drafted, not 3."""
    dip = CostTable({1: 1.0, 4: 3.0, 7: 3.0, 8: 1.2, 9: 3.0, 64: 30.0})
    assert sizes(Budget(dip, 64), chain(20)) == [7]
    assert sizes(Budget(dip, 64), chain(3, 0.6)) == [0]


def test_the_choice_is_the_maximum_of_expected_tokens_by_cost():
    costs = CostTable({1: 1.0, 2: 1.1, 16: 2.5, 64: 9.0})
    for claim in (0.3, 0.6, 0.9, 0.97):
        budget = Budget(costs, 64)
        draft = chain(40, claim)
        (chosen,) = budget.choose([draft])
        _, reach = budget._rank(draft)
        rates = [(1 + sum(reach[:n])) / costs.at(n + 1) for n in range(41)]
        assert len(chosen.tokens) == int(np.argmax(rates))


def test_history_moves_the_choice_both_ways_and_fades():
    costs = CostTable({1: 1.0, 64: 10.0})
    budget = Budget(costs, 64)
    draft = chain(30, 0.8)
    (start,) = sizes(budget, draft)
    for _ in range(30):
        budget.learn(draft, range(30))
    (good,) = sizes(budget, draft)
    assert good == 30 > start > 0
    for _ in range(60):
        budget.learn(draft, ())
    assert sizes(budget, draft) == [0]
    # Another source is judged by its own record.
    assert sizes(budget, chain(30, 0.8, "y")) == [start]
    for _ in range(400):
        budget.learn(Draft((), (), (), None, "x"), ())
    assert sizes(budget, draft) == [start]


def test_numbers_stay_finite_over_a_long_life():
    budget = Budget(FREE, 16)
    for _ in range(30_000):
        budget.learn(chain(2), (0,))
    assert 0 < sum(budget._rank(chain(8))[1]) < 8


def test_a_tree_is_cut_to_its_best_nodes_and_stays_a_tree():
    rng = random.Random(0)
    for _ in range(50):
        n = rng.randint(1, 40)
        parents = tuple(rng.randint(-1, i - 1) for i in range(n))
        scores = []
        for parent in parents:
            scores.append(rng.random() * (scores[parent] if parent >= 0 else 1.0))
        draft = Draft(tuple(range(n)), parents, tuple(scores), None, "t")
        budget = Budget(CostTable({1: 1.0, 2: 1.2, 64: rng.choice([2.0, 8.0])}), 64)
        (cut,) = budget.choose([draft])
        for i, (token, parent) in enumerate(zip(cut.tokens, cut.parents, strict=True)):
            assert -1 <= parent < i
            assert (cut.tokens[parent] if parent >= 0 else -1) == parents[token]
            assert cut.scores[i] == scores[token]
        order, reach = budget._rank(draft)
        assert sorted(list(order)[: len(cut.tokens)]) == list(cut.tokens)
        assert all(a >= b for a, b in pairwise(reach))


def test_rows_share_one_width():
    budget = Budget(CostTable({1: 1.0, 64: 6.0}), 64)
    alone = sizes(budget, chain(40, 0.95))[0]
    together = sizes(budget, chain(40, 0.95), Draft(), Draft(), Draft())
    # Three rows that gain nothing pay for the width as well.
    assert 0 < together[0] < alone
    assert together[1:] == [0, 0, 0]


def test_sampled_drafts_are_not_cut_by_their_scores():
    laws = np.full((4, 3), 1 / 3, np.float32)
    draft = Draft((0, 1, 2, 0), (-1, 0, 1, 2), (0.01,) * 4, laws)
    assert Budget(LINE, 64).choose([draft]) == [draft]
    forest = Draft((0, 1, 2, 0), (-1, -1, 0, 1), (0.1, 0.9, 0.1, 0.9), laws)
    assert fit(forest, vocab=3, width=9, depth=9, tree=False).tokens == (0, 2)


def test_a_tree_that_must_be_confirmed_pays_for_two_passes():
    forest = Draft((1, 2, 3), (-1, -1, -1), (0.5, 0.3, 0.2), None, "t")
    assert sizes(Budget(FREE, 64), forest) == [3]
    (cut,) = Budget(FREE, 64, confirm=True).choose([forest])
    assert cut.tokens == (1,)


def test_choices_follow_from_costs_alone_and_never_touch_the_output():
    tables = (FREE, LINE, CostTable({1: 1.0, 2: 1.3, 8: 1.1, 64: 5.0}))
    model = Strict(vocab=24, order=2, seed=4, end=6)
    asked = requests(6, vocab=24, seed=8)
    for drafter in DRAFTERS:
        texts = set()
        for costs in tables:
            one, two = (run(model, asked, drafter, batch=2, costs=costs) for _ in range(2))
            assert [c.stats.histogram for c in one] == [c.stats.histogram for c in two]
            texts.add(tuple(c.tokens for c in one))
        assert len(texts) == 1


def test_a_drafter_that_is_always_wrong_is_left_alone():
    model = Strict(vocab=200, order=0, seed=4)
    (done,) = run(model, [asked_long()], Lookup(), costs=LINE)
    assert done.stats.drafted == 0
    assert done.stats.passes == 80


def asked_long():
    from steno.decode import Request

    return Request(number=0, prompt=(1, 2, 1, 2, 1), max_tokens=80)


def test_what_a_step_saves_counts_and_so_does_what_drafting_takes():
    costs = {1: 1.0, 2: 1.5, 64: 60.0}
    assert sizes(Budget(CostTable(costs), 64), chain(9, 0.4)) == [0]
    assert sizes(Budget(CostTable(costs, overhead=2.0), 64), chain(9, 0.4)) == [1]
    budget = Budget(CostTable(costs, overhead=2.0), 64)
    assert sizes(budget, chain(9, 0.6))[0] > 0 and budget.worth
    for _ in range(200):
        budget.watch(2.0, 4.0)
    # Made drafts are used, but the next ones may as well not be made.
    assert sizes(budget, chain(9, 0.6))[0] > 0 and not budget.worth


def test_the_running_medians_shrug_at_a_pause():
    budget = Budget(LINE, 4)
    for i in range(500):
        budget.watch(1e-4 if i % 10 else 3.0, 1e-5)
    assert 0.8e-4 < budget.overhead < 1.6e-4
    assert 0.8e-5 < budget.making < 1.2e-5


def test_drafting_rests_where_it_does_not_pay_and_comes_back(monkeypatch):
    """Never more than four steps without a draft, and no rest at all once drafts pay."""
    asked = []

    class Watched(type(Recycle().open(1, 1))):
        def propose(self, row, ids, budget, ahead=()):
            asked.append(len(ids))
            return super().propose(row, ids, budget, ahead)

    monkeypatch.setattr(Recycle, "open", lambda self, rows, vocab: Watched(vocab))
    model = Strict(vocab=20, order=1, seed=4)
    (done,) = run(model, [asked_long()], Recycle(), costs=CostTable({1: 1.0, 2: 3.0}))
    assert done.stats.passes == 80 and done.stats.drafted == 0
    assert max(b - a for a, b in pairwise(asked)) == 5
    assert len(asked) < 40
    asked.clear()
    (done,) = run(model, [asked_long()], Recycle(), costs=FREE)
    assert len(asked) == done.stats.passes - (done.pieces[-1].drafted == 0)


def test_keep_and_fit_by_hand():
    draft = Draft((5, 6, 7, 8), (-1, -1, 0, 2), (0.9, 0.2, 0.8, 0.7), None, "t")
    assert keep(draft, [0, 2, 3]) == Draft((5, 7, 8), (-1, 0, 1), (0.9, 0.8, 0.7), None, "t")
    assert fit(draft, vocab=99, width=9, depth=2, tree=True).tokens == (5, 6, 7)
    assert fit(draft, vocab=99, width=2, depth=9, tree=True).tokens == (5, 6)
    assert fit(draft, vocab=99, width=9, depth=9, tree=False).tokens == (5, 7, 8)
    assert fit(draft, vocab=7, width=9, depth=9, tree=True).tokens == (5, 6)
    assert fit(Draft.chain([1, 2, 9, 1]), vocab=9, width=9, depth=9, tree=True).tokens == (1, 2)
    assert fit(Draft.chain([1, 2, 3]), vocab=9, width=9, depth=0, tree=True).tokens == ()


def test_kept_nodes_run_whatever_they_cost():
    """Width 2 costs three steps, so nothing pays: the two kept nodes stay, a chain's third and a tree's best do not."""
    dear = CostTable({1: 1.0, 2: 3.0, 8: 100.0})
    chain = Draft((1, 2, 3), (-1, 0, 1), (0.9, 0.8, 0.7), None, "t", 2)
    assert Budget(dear, 9).choose([chain])[0].tokens == (1, 2)
    tree = Draft((1, 2, 3), (-1, -1, -1), (0.1, 0.1, 0.7), None, "t", 2)
    assert Budget(dear, 9).choose([tree])[0].tokens == (1, 2)
    assert Budget(dear, 9).choose([keep(chain, range(3)), Draft((5,), (-1,), (0.9,))])[0].tokens == (1, 2)
    assert Budget(CostTable({1: 1.0, 2: 1.01, 8: 1.1}), 9).choose([tree])[0].tokens == (1, 2, 3)
    assert (keep(tree, [1, 2]).kept, keep(tree, [2]).kept, keep(chain, range(1)).kept) == (1, 0, 1)


def test_a_tree_that_does_not_pay_for_two_passes_leaves_its_best_path():
    """Two passes for at most 2.3 tokens are worth less than one pass for 2 along the better path."""
    tree = Draft((1, 2, 3), (-1, -1, 0), (0.6, 0.3, 0.4))
    (cut,) = Budget(FREE, 64, confirm=True).choose([tree])
    assert cut.tokens == (1, 3) and not cut.branches
