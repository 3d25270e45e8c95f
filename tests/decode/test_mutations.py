"""The checks bite: each rule of the pitfalls list, broken on purpose, fails a check that passes without that."""

from collections.abc import Callable
from itertools import count

import numpy as np
import pytest
import test_acceptors
import test_drafters
import test_loop
from rig import KINDS, Hostile, Strict, plain, requests, run

from steno.core import Plan
from steno.decode import loop
from steno.decode._budget import Budget
from steno.decode._noise import draw
from steno.decode._row import Row
from steno.decode._view import NodeView
from steno.decode.accept import greedy, gumbel, residual
from steno.decode.accept.residual import Residual
from steno.decode.base import Draft
from steno.decode.draft.suffix import Suffix
from steno.decode.shape.repetition import Repetition
from steno.decode.shape.temperature import Temperature

MODEL = Strict(vocab=24, order=2, seed=1, end=3)
WARM = (Temperature(temperature=0.7),)


def equal(*knobs, model=MODEL, kinds=KINDS, batch=3, plan: Plan | None = None):
    """Output with hostile and honest drafters is that of plain decoding."""
    Hostile.model = model
    asked = requests(8, vocab=model.vocab, seed=31)
    for drafter in (*(Hostile(kind=k) for k in kinds), Suffix()):
        done = run(model, asked, *knobs, drafter, batch=batch)
        assert [(c.tokens, c.finish) for c in done] == [plain(model, r, Plan(knobs)) for r in asked]
        for completion in done:
            test_loop.honest(completion)


def greedy_check():
    equal()


def sampled_check():
    equal(*WARM, kinds=("random", "tree", "truth"))


def penalty_check():
    """Each token is one more than the last, and its successor stands beside it in the draft, as a decoy."""

    def script(past):
        row = np.zeros(64, np.float32)
        row[[(past[-1] + 1) % 64, (past[-1] + 2) % 64]] = 3, 2
        return row

    equal(Repetition(penalty=3.0), model=Strict(vocab=64, script=script), kinds=("decoy",))


def fresh_check():
    equal(model=Strict(vocab=24, order=0, seed=1), kinds=("truth",))


def law_check():
    for name in ("three children", "sampled", "several with replacement"):
        counts = test_acceptors.first_tokens(Residual(), test_acceptors.PROPOSALS[name], trials=4000)
        assert test_acceptors.chi_square(counts, test_acceptors.P) < test_acceptors.LIMIT


def confirm_check():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Budget, "choose", lambda self, drafts: list(drafts))
        equal(model=Strict(vocab=24, order=1, seed=1, inexact=True), kinds=("tree", "forest", "twins"))


def end_check():
    with pytest.MonkeyPatch.context() as patch:
        test_loop.test_a_perfect_draft_is_cut_at_the_end_token_wherever_it_stands(patch)


# The breakages, each the body of a well-known bug.


def unverified_first_draft(patch):
    """P14: draft[0] is taken without asking the pending token's logits."""
    right = greedy.follow

    def follow(draft, choose):
        if not draft.tokens:
            return right(draft, choose)
        path, node = [0], 0
        after = choose(0)
        for i, (token, parent) in enumerate(zip(draft.tokens, draft.parents, strict=True)):
            if i and token == after and parent == node:
                path.append(i)
                node, after = i, choose(i)
        return path, after

    patch.setattr(greedy, "follow", follow)


def unverified_bonus_token(patch):
    """The token after the accepted path is read off the node before it."""
    right = greedy.follow

    def follow(draft, choose):
        path, after = right(draft, choose)
        return path, choose(draft.parents[path[-1]]) if path else after

    patch.setattr(greedy, "follow", follow)


def soft_coin(patch):
    """P12: `<=` lets the impossible out at a coin of zero."""
    patch.setattr(
        residual, "accepts",
        lambda law, draft, child, coin: bool(
            coin * (1.0 if draft.laws is None else draft.laws[child, draft.tokens[child]]) <= law[draft.tokens[child]]
        ),
    )  # fmt: skip


def coin_check():
    p = np.array([0.0, 1.0])
    assert not residual.accepts(p, Draft((0,), (-1,)), 0, 0.0)


def no_renormalisation(patch):
    """P11: after a rejection the rest keeps its old scale."""

    def remainder(law, draft, child):
        rest = law.copy() if draft.laws is None else np.maximum(law - draft.laws[child], 0)
        rest[draft.tokens[child]] *= draft.laws is not None
        return rest if rest.sum() > 0 else law

    patch.setattr(residual, "remainder", remainder)


def resample_from_p(patch):
    """After a rejection the next token is drawn from p itself."""
    patch.setattr(residual, "remainder", lambda law, draft, child: law)


def sibling_seeing_penalty(patch):
    """P10: a node's past holds all drafts before it, siblings included."""
    patch.setattr(NodeView, "_branch", lambda self, node: list(self._draft.tokens[: node + 1]))


def noise_by_call_order(patch):
    """P16: randomness is drawn from one stream as it is needed."""
    calls = count()
    patch.setattr(gumbel, "draw", lambda key, logits: draw(type(key)(key.seed, 0, next(calls), "token"), logits))


def noise_by_row(patch):
    """P16: the stream is the batch row's."""
    right = NodeView.key
    patch.setattr(
        NodeView,
        "key",
        lambda self, node, purpose: type(k := right(self, node, purpose))(k.seed, self._row, k.position, purpose),
    )


def end_not_cut(patch):
    """P13: the loop looks at the last token of a block only."""

    def cut(self, new):
        left = self.end - len(self.ids)
        if new[-1] in self.ends:
            self.finish = "eos"
        elif len(new) >= left:
            self.finish = self._reason
        return min(len(new), left)

    patch.setattr(Row, "_cut", cut)


def overshoot(patch):
    """P13: max_tokens ends the text after the block in which it is reached."""
    patch.setattr(Row, "left", property(lambda self: 100))
    right = Row._cut

    def cut(self, new):
        kept = right(self, new)
        return len(new) if self.finish == "length" else kept

    patch.setattr(Row, "_cut", cut)


def unconfirmed_tree(patch):
    """Trees whose logits are only near are taken at their word."""
    patch.setattr(loop.Loop, "_confirms", False)


def row_not_emptied(patch):
    """P2: a row's next request stands on the one before."""
    from rig import StrictSession

    patch.setattr(StrictSession, "crop", lambda self, lengths: None)


def pending_committed_twice(patch):
    """P1: the token after the path is committed with it and runs again as pending."""
    right = loop.Loop._start

    def start(self, starters):
        for _, row in starters:
            row.ids.append(row.ids[-1])
        right(self, starters)
        for _, row in starters:
            row.ids.pop()

    patch.setattr(loop.Loop, "_start", start)


def first_writer_wins(patch):
    """P15: of a token that stands twice in a step, the first node decides the table's row."""
    from steno.decode.draft.recycle import _Recycle

    def observe(self, row, seen):
        for i, token in reversed(list(enumerate(seen.tokens))):
            self.table[token, : self.top] = seen.top[i]

    patch.setattr(_Recycle, "observe", observe)


MUTATIONS: list[tuple[Callable, Callable]] = [
    (unverified_first_draft, greedy_check),
    (unverified_bonus_token, greedy_check),
    (soft_coin, coin_check),
    (no_renormalisation, law_check),
    (resample_from_p, law_check),
    (sibling_seeing_penalty, penalty_check),
    (noise_by_call_order, sampled_check),
    (noise_by_row, sampled_check),
    (end_not_cut, end_check),
    (overshoot, greedy_check),
    (unconfirmed_tree, confirm_check),
    (row_not_emptied, fresh_check),
    (pending_committed_twice, greedy_check),
    (first_writer_wins, test_drafters.test_the_deepest_accepted_node_writes_last),
]


@pytest.mark.parametrize("check", dict.fromkeys(check for _, check in MUTATIONS), ids=lambda f: f.__name__)
def test_the_checks_pass(check, monkeypatch):
    monkeypatch.setattr(Hostile, "model", MODEL, raising=False)
    check()


@pytest.mark.parametrize(("breakage", "check"), MUTATIONS, ids=lambda f: f.__name__)
def test_a_broken_rule_is_found(breakage, check, monkeypatch):
    monkeypatch.setattr(Hostile, "model", MODEL, raising=False)
    breakage(monkeypatch)
    with pytest.raises(AssertionError):
        check()
