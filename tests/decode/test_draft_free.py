"""Jacobi, speculative Jacobi, lookahead, suffix automaton and ADED: by hand and against naive oracles."""

import math
import random

import numpy as np
import pytest
from rig import FREE, Strict, plain, requests, run, softmax

from steno.core import Key, Plan
from steno.decode import Loop, Request
from steno.decode._noise import gumbel
from steno.decode.accept.gumbel import Gumbel
from steno.decode.accept.residual import Residual
from steno.decode.base import Seen
from steno.decode.draft._guesses import moved, ran
from steno.decode.draft._trie import Trie
from steno.decode.draft.aded import Aded, Search, blend
from steno.decode.draft.automaton import Automaton, States
from steno.decode.draft.jacobi import Jacobi
from steno.decode.draft.lookahead import Lookahead, place
from steno.decode.draft.sjd import SpeculativeJacobi, drawn
from steno.decode.shape.temperature import Temperature

# Jacobi


def naive_jacobi(model, ids, guesses):
    """One iteration, written out: every guess from the guesses before it."""
    out = []
    for i in range(len(guesses) + 1):
        out.append(int(model.row([*ids, *guesses[:i]]).argmax()))
    return out


@pytest.mark.parametrize("order", [1, 2, 0])
def test_jacobi_iterates_as_written_and_its_true_prefix_grows(order):
    """The window of every step is the last one corrected in parallel, and after n steps n guesses have been right."""
    model = Strict(vocab=12, order=order, seed=3)
    loop = Loop(model, Plan((Jacobi(window=5),)), costs=FREE)
    loop.submit(Request(number=0, prompt=(1, 2, 3), max_tokens=40))
    drafter = loop._drafter
    for _ in range(25):
        if not loop.busy:
            break
        row = loop._rows[0]
        ids = list(row.ids) if row else [1, 2, 3]
        before = list(drafter.guesses[0]) if row else []
        (piece,) = loop.step()
        if not before or not loop.busy:
            continue
        while len(before) < 5:
            before.append(ids[(7 * len(ids) + 5 * len(before)) % len(ids)])
        said = naive_jacobi(model, ids, before)
        assert list(piece.tokens) == said[: len(piece.tokens)]
        assert drafter.guesses[0] == said[len(piece.tokens) :]


def test_a_block_converges_to_greedy_in_as_many_iterations_as_it_has_tokens():
    model = Strict(vocab=12, seed=4)
    ids, guesses = [3, 1], [0] * 6
    truth = plain(model, Request(number=0, prompt=(3, 1), max_tokens=6))[0]
    right = []
    for _ in range(6):
        guesses = naive_jacobi(model, ids, guesses)[:6]
        right.append(next((i for i in range(6) if guesses[i] != truth[i]), 6))
    assert right == sorted(right) and all(n >= i for i, n in enumerate(right, 1)) and right[-1] == 6


def test_guesses_move_by_hand():
    seen = Seen(tokens=(9, 5, 4, 5, 6), parents=(-1, 0, 0, 2, 1), path=(0, 1), new=(5, 8))
    assert ran(seen, [5, 6, 7]) == [0, 1, 4]
    assert ran(seen, [4, 5]) == [0, 2, 3]
    assert ran(seen, [8]) == [0]
    assert moved([11, 12, 13, 14], [23], 3, 2) == [23, 14]
    assert moved([11, 12, 13, 14], [], 1, 3) == [14]


# Speculative Jacobi


def test_guesses_are_drawn_from_the_law_they_come_with():
    """By the noise of their place: over many requests as often as the law says, and never a token of mass 0."""
    law = np.array([0.5, 0.3, 0.2, 0.0], np.float32)
    counts = np.bincount([drawn(law, Key(0, n, 7, "token")) for n in range(20_000)], minlength=4) / 20_000
    assert np.abs(counts - law).max() < 0.015 and counts[3] == 0


def test_guesses_come_from_the_laws_of_the_nodes_that_ran_with_the_noise_of_their_place():
    """Three of four guesses ran and one was accepted: places 5 and 6 are drawn anew, from the nodes before them."""
    drafter = SpeculativeJacobi(window=4).open(2, 6)
    drafter.start(1, Request(number=5, prompt=(1, 2, 3), seed=9))
    draft = drafter.propose(1, [1, 2, 3], 4)
    assert draft.laws.sum(axis=1).tolist() == [1, 1, 1, 1]
    assert all(draft.laws[i, token] == 1 for i, token in enumerate(draft.tokens))
    laws = np.random.default_rng(0).dirichlet(np.ones(6), 4).astype(np.float32)
    seen = Seen(
        tokens=(3, *draft.tokens[:3]), parents=(-1, 0, 1, 2), path=(0, 1), new=(draft.tokens[0], 4), laws=laws
    )  # fmt: skip
    drafter.observe(1, seen)
    got = drafter.guesses[1]
    # The text had 3 tokens and gained 2: guesses stand at places 5 and 6, after nodes 2 and 3.
    for i, (token, law) in enumerate(got[:2]):
        assert (law == laws[2 + i]).all()
        noise = gumbel(Key(9, 5, 5 + i, "token"), 6)
        assert token == int((np.log(law) + noise).argmax())
    assert len(got) == 2
    assert drafter.length[1] == 5


@pytest.mark.parametrize("acceptor", [Gumbel(), Residual()])
def test_sjd_keeps_the_law(acceptor):
    """First tokens over many requests against the law, drafts and all; with seeds that are exact, token for token."""
    model = Strict(vocab=6, order=2, seed=2)
    warm = Temperature(temperature=2.5)
    asked = [Request(number=n, prompt=(1, 2), max_tokens=3, ignore_eos=True) for n in range(6000)]
    drafted = run(model, asked, SpeculativeJacobi(window=3), acceptor, warm, batch=64)
    if acceptor.card.keeps == "tokens":
        assert [c.tokens for c in drafted] == [c.tokens for c in run(model, asked, acceptor, warm, batch=64)]
    assert sum(c.stats.accepted for c in drafted) > 1000
    want = np.zeros((6, 6, 6))
    for a, b, c in np.ndindex(6, 6, 6):
        laws = [softmax(model.row(past) / np.float32(2.5)) for past in ([1, 2], [2, a], [a, b])]
        want[a, b, c] = laws[0][a] * laws[1][b] * laws[2][c]
    got = np.zeros_like(want)
    for c in drafted:
        got[c.tokens] += 1 / len(asked)
    for axes in ((1, 2), (0, 2), (0, 1)):
        assert np.abs(got.sum(axes) - want.sum(axes)).sum() / 2 < 0.025


# Lookahead


def test_the_window_is_the_paper_s_mask():
    """Iteration 0 is a chain; a token of iteration l in column c sees iteration 0 up to c, and its own column."""
    trie = Trie()
    levels = [[0, 1, 2], [10, 11, 12], [20, 21, 22]]
    place(trie, levels)
    seen = {trie.tokens[i]: trie.path(i) for i in range(len(trie.tokens))}
    assert seen == {
        1: [1], 2: [1, 2], 10: [10], 20: [10, 20], 11: [1, 11], 21: [1, 11, 21], 12: [1, 2, 12], 22: [1, 2, 12, 22],
    }  # fmt: skip
    assert all(trie.scores[i] <= (trie.scores[p] if p >= 0 else 1) for i, p in enumerate(trie.parents))


def naive_lookahead(model, ids, levels):
    """What the model says after each column's last iteration."""
    return [
        int(model.row([*ids, *levels[0][1 : c + 1], *(level[c] for level in levels[1:])]).argmax())
        for c in range(len(levels[0]))
    ]


@pytest.mark.parametrize("order", [1, 2, 0])
def test_the_window_advances_and_collects_as_written(order):
    model = Strict(vocab=10, order=order, seed=7)
    knob = Lookahead(ngram=3, window=4, guesses=3)
    loop = Loop(model, Plan((knob,)), costs=FREE)
    loop.submit(Request(number=0, prompt=(1, 2, 3), max_tokens=60))
    loop.step()
    drafter, moves = loop._drafter, 0
    while loop.busy:
        ids = list(loop._rows[0].ids)
        levels = [list(level) for level in drafter.levels[0]]
        drafter._fill(levels, ids)
        said = naive_lookahead(model, ids, levels)
        # Near its end a text has no room for the last columns.
        if loop._rows[0].left < 8:
            break
        (piece,) = loop.step()
        taken = len(piece.tokens) - 1
        assert drafter.levels[0] == [levels[1][taken:], said[taken:]]
        for c, token in enumerate(said):
            # Later columns may have pushed out an n-gram of the same first token.
            held = drafter.pool[0][levels[0][c]]
            assert (levels[1][c], token) in held or len(held) == 3
        moves += taken
    assert moves > 0
    assert all(len(held) <= 3 for held in drafter.pool[0].values())


def test_lookahead_drafts_from_its_pool_and_keeps_the_window_whatever_it_is_worth():
    drafter = Lookahead(ngram=3, window=2, guesses=2).open(1, 50)
    drafter.start(0, Request(number=0, prompt=(1, 2)))
    for ngram in ((2, 7, 8), (2, 7, 9), (2, 5, 5), (3, 1, 1)):
        drafter._collect(0, ngram)
    draft = drafter.propose(0, [1, 2], 99)
    trie = [draft.tokens[i] for i in range(draft.kept, len(draft.tokens))]
    assert draft.kept in (2, 3), "twins share a node"
    # The two newest that begin with 2, the newest first; the oldest is forgotten.
    assert trie == [5, 5, 7, 9]
    assert drafter.propose(0, [1, 2], 99, ahead=(3,)).tokens == (1, 1)


def test_a_window_that_did_not_run_stays_at_its_places():
    drafter = Lookahead(ngram=3, window=4).open(1, 50)
    drafter.start(0, Request(number=0, prompt=(1, 2)))
    drafter.levels[0] = [[1, 2, 3, 4], [5, 6, 7, 8]]
    alone = Seen(tokens=(1,), parents=(-1,), path=(0,), new=(9,), top=np.array([[9]], np.int32))
    drafter.observe(0, alone)
    assert drafter.levels[0] == [[2, 3, 4], [6, 7, 8]]


# Suffix automaton


def longest_repeat(text):
    """(length, place after it) of the longest end that occurred before the end, at its first occurrence."""
    for size in range(len(text) - 1, 0, -1):
        for i in range(len(text) - size):
            if text[i : i + size] == text[len(text) - size :]:
                return size, i + size
    return 0, 0


def test_the_automaton_against_brute_force():
    rng = random.Random(1)
    for letters in (1, 2, 3, 8):
        for _ in range(15):
            states, text = States(), []
            for _ in range(40):
                token = rng.randrange(letters)
                states.extend([token])
                text.append(token)
                assert states.longest() == longest_repeat(text)


def test_the_automaton_looks_ahead_without_growing():
    states = States()
    states.extend([1, 2, 3, 1, 2, 4, 1])
    assert states.longest() == (1, 1)
    size = len(states.length)
    assert states.longest([2]) == (2, 2) and states.longest([2, 4]) == (3, 6) and states.longest([9]) == (0, 0)
    assert len(states.length) == size and states.longest() == (1, 1)


def test_the_automaton_drafts_by_the_length_of_its_match():
    text = list(range(20))
    for match in (1, 2, 3):
        drafter = Automaton(min_match=2).open(1, 50)
        prompt = [*text, 30, *text[:match]]
        drafter.start(0, Request(number=0, prompt=tuple(prompt)))
        draft = drafter.propose(0, prompt, 99)
        assert draft.tokens == ((*text, 30)[match : match + 1 + 4 * match] if match >= 2 else ())
    states = Automaton(num_tokens=7).open(1, 50)
    states.start(0, Request(number=0, prompt=(1, 2, 1, 2, 1)))
    assert states.propose(0, [1, 2, 1, 2, 1], 99).tokens == (2, 1, 2, 1, 2, 1, 2)


# ADED


def test_the_table_follows_a_stationary_model():
    """KL of the table from the model, both over the model's eight best, falls with every visit to a context."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (1, 8)).astype(np.float32)
    best = np.argsort(-logits[0], kind="stable").astype(np.int32)
    law = softmax(logits[0])
    drafter = Aded(rate=0.3).open(1, 8)
    drafter.start(0, Request(number=0, prompt=(4, 5)))
    drafter.table[4, 5] = dict.fromkeys(range(8), 1 / 8)
    gaps = []
    for _ in range(12):
        drafter.before[0] = 4
        seen = Seen(tokens=(5,), parents=(-1,), path=(0,), new=(0,), top=best[None], logits=logits[:, best])
        drafter.observe(0, seen)
        held = drafter.table[4, 5]
        gaps.append(sum(held[i] * math.log(held[i] / law[i]) for i in range(8)))
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] < 1e-3 < gaps[0]


def test_blend_keeps_eight_and_sums_to_one():
    mixed = blend(dict.fromkeys(range(8), 1 / 8), dict.fromkeys(range(4, 12), 1 / 8), 0.5)
    assert list(mixed)[:4] == [4, 5, 6, 7] and len(mixed) == 8 and sum(mixed.values()) == pytest.approx(1)


def test_without_exploration_the_first_path_is_the_table_s_best():
    table = {(0, 1): {2: 0.6, 3: 0.4}, (1, 2): {4: 0.7, 5: 0.3}, (2, 4): {6: 1.0}, (1, 3): {7: 1.0}}
    search = Search(table, Aded(explore=0.0, depth=4), (0, 1))
    for _ in range(5):
        search.simulate()
    assert search.trie.tokens == [2, 4, 6]
    assert search.trie.scores == pytest.approx([0.6, 0.42, 0.42])
    wide = Search(table, Aded(explore=4.0, depth=2), (0, 1))
    for _ in range(40):
        wide.simulate()
    assert {tuple(wide.trie.path(i)) for i in range(len(wide.trie.tokens))} == {(2,), (3,), (2, 4), (2, 5), (3, 7)}
    assert wide.visits[-1] == 40


def test_aded_learns_every_node_that_ran():
    model = Strict(vocab=9, order=2, seed=5)
    loop = Loop(model, Plan((Aded(rate=1.0),)), costs=FREE)
    loop.submit(Request(number=0, prompt=(1, 2, 3), max_tokens=120))
    list(loop)
    table = loop._drafter.table
    assert len(table) > 10
    for (a, b), law in table.items():
        row = model.row([a, b])
        assert set(law) == set(np.argsort(-row, kind="stable")[:8].tolist())
        want = softmax(np.sort(row)[::-1][:8])
        np.testing.assert_allclose(list(law.values()), want, atol=1e-6)


@pytest.mark.parametrize("knob", [Jacobi(), SpeculativeJacobi(), Lookahead(), Automaton(), Aded()])
def test_the_text_is_plain_decoding_s(knob):
    for order in (1, 2, 0):
        model = Strict(vocab=20, order=order, seed=order, end=4)
        asked = requests(6, vocab=20, seed=order)
        done = run(model, asked, knob, batch=3)
        assert [(c.tokens, c.finish) for c in done] == [plain(model, r) for r in asked]
