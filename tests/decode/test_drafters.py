"""Drafters: each by hand, against a naive oracle, and at its own edge."""

import random
from itertools import pairwise

import numpy as np
import pytest
from rig import FREE, Strict, run

from steno.core import Plan
from steno.core.errors import KnobError
from steno.decode import Loop, Request
from steno.decode.base import Seen
from steno.decode.draft._contexts import BREAK, FEW, Contexts
from steno.decode.draft.lookup import Lookup
from steno.decode.draft.recycle import LEVELS, Recycle, tree
from steno.decode.draft.suffix import NEWEST, Suffix, grow


def drafted(knob, prompt, ids=None, budget=255):
    drafter = knob.open(1, 1000)
    drafter.start(0, Request(number=0, prompt=tuple(prompt)))
    return drafter.propose(0, list(ids if ids is not None else prompt), budget)


# Prompt lookup


def test_lookup_by_hand():
    knob = Lookup(max_ngram=3, min_ngram=1, num_tokens=4)
    assert drafted(knob, [1, 2, 3, 4, 5, 6, 1, 2, 3]).tokens == (4, 5, 6, 1)
    assert drafted(knob, [1, 2, 3, 4, 5, 6, 1, 2, 3], budget=2).tokens == (4, 5)
    # The longer match beats the newer one; of equal ones the newer wins.
    assert drafted(knob, [7, 1, 2, 8, 9, 2, 6, 7, 1, 2]).tokens == (8, 9, 2, 6)
    assert drafted(knob, [2, 8, 9, 2, 6, 5, 5, 2]).tokens == (6, 5, 5, 2)
    assert drafted(knob, [1, 2, 3]).tokens == ()
    assert drafted(knob, [4]).tokens == ()


def test_lookup_repeats_a_period():
    assert drafted(Lookup(num_tokens=7), [1, 2, 3, 1, 2]).tokens == (3, 1, 2, 3, 1, 2, 3)
    assert drafted(Lookup(num_tokens=3), [5, 5]).tokens == (5, 5, 5)


def test_lookup_is_the_naive_search():
    rng = random.Random(1)
    for _ in range(60):
        knob = Lookup(max_ngram=rng.randint(1, 4), min_ngram=1, num_tokens=rng.randint(1, 9))
        ids = [rng.randrange(4) for _ in range(rng.randint(1, 6))]
        drafter = knob.open(2, 4)
        drafter.start(1, Request(number=0, prompt=tuple(ids)))
        for _ in range(12):
            assert drafter.propose(1, ids, 200).tokens == naive_lookup(ids, knob)
            ids += [rng.randrange(4) for _ in range(rng.randint(1, 4))]


def naive_lookup(ids, knob):
    for n in range(knob.max_ngram, knob.min_ngram - 1, -1):
        for end in range(len(ids) - 1, n - 1, -1):
            if ids[end - n : end] == ids[-n:] and n <= len(ids):
                out = list(ids)
                for i in range(knob.num_tokens):
                    out.append(out[end + i])
                return tuple(out[len(ids) :])
    return ()


@pytest.mark.parametrize("knob", [Lookup(num_tokens=10), Suffix(alpha=16.0, num_tokens=10)], ids=["lookup", "suffix"])
def test_a_copied_prompt_takes_a_pass_per_draft(knob):
    rng = random.Random(0)
    text = [rng.randrange(2, 500) for _ in range(220)]
    chain = [*text, 0, *text, 1]
    model = Strict(vocab=500, end=1, script=lambda past: one_hot(500, chain[min(len(past), 441)]))
    (done,) = run(model, [Request(number=0, prompt=(*text, 0, text[0]), max_tokens=400)], knob)
    assert done.tokens == (*text[1:], 1)
    assert done.stats.passes <= 220 / 11 + 3


def one_hot(vocab, token):
    row = np.zeros(vocab, np.float32)
    row[token] = 3
    return row


def test_lookup_refuses_a_reversed_range():
    with pytest.raises(
        KnobError, match=r"decode.draft.lookup: min_ngram must not exceed max_ngram \(2\), got 3. Set it"
    ):
        Lookup(max_ngram=2, min_ngram=3)


# Suffix decoding


def brute(text, context):
    """Places after occurrences of `context` that have a next token, documents apart."""
    n = len(context)
    return [
        e
        for e in range(n, len(text))
        if text[e - n : e] == context and text[e] != BREAK and BREAK not in text[e - n : e]
    ]


def grown_text(rng, letters, documents):
    return [[rng.randrange(letters) for _ in range(rng.randint(1, 60))] for _ in range(documents)]


@pytest.mark.parametrize("depth", [1, 2, 5, 64])
def test_occurrences_are_those_of_a_brute_force_search(depth):
    rng = random.Random(depth)
    for letters in (1, 2, 4, 30):
        index = Contexts(depth)
        for document in grown_text(rng, letters, 6):
            index.extend([*document, BREAK])
            context = document[-depth:]
            found = index.matches(context)
            lengths = [n for n, _ in found]
            assert lengths == sorted(set(lengths), reverse=True)
            by_length = {n: brute(index.text, context[len(context) - n :]) for n in range(1, len(context) + 1)}
            longest = max((n for n, places in by_length.items() if places), default=0)
            assert (lengths[0] if lengths else 0) == longest
            for n, places in found:
                assert sorted(places) == by_length[n]
            # One entry per distinct set, with its longest context.
            for (longer, few), (shorter, many) in pairwise(found):
                assert set(few) < set(many)
                assert len(by_length[shorter + 1]) < len(many) or shorter + 1 == longer


def shape(node):
    children = None if node.children is None else {token: shape(child) for token, child in node.children.items()}
    return node.ends, children


def test_forgetting_leaves_what_would_have_been_without():
    rng = random.Random(3)
    for letters in (1, 3, 20):
        documents = grown_text(rng, letters, 12)
        index = Contexts(8)
        for n, document in enumerate(documents):
            index.extend([*document, BREAK])
            if n >= 4:
                index.forget()
        alone = Contexts(8)
        alone.base = index.base
        for document in documents[-4:]:
            alone.extend([*document, BREAK])
        assert index.text == alone.text
        assert shape(index.root) == shape(alone.root)


def test_growth_by_hand():
    """After "a": b twice, c once; after "ab": d and e once each."""
    a, b, c, d, e = range(5)
    index = Contexts(8)
    index.extend([a, b, d, a, c, c, a, b, e, a])
    ((length, places),) = index.matches([a])
    assert (length, places) == (1, [1, 4, 7])
    assert grow(index, places, 9, 0.1, False) == ((b, e, a), (-1, 0, 1), (2 / 3, 1 / 3, 1 / 3))
    tokens, parents, probs = grow(index, places, 20, 0.3, True)
    assert set(zip(tokens, parents, probs, strict=True)) >= {
        (b, -1, 2 / 3),
        (c, -1, 1 / 3),
        (e, 0, 1 / 3),
        (d, 0, 1 / 3),
    }
    assert list(probs) == sorted(probs, reverse=True)
    assert grow(index, places, 9, 0.5, False)[0] == (b,)
    assert grow(index, places, 1, 0.1, True)[0] == (b,)


def naive_growth(text, places, limit, min_prob):
    """The greedy tree with probabilities by counting, as a dictionary path -> probability."""
    counts = {(): len(places)}
    for place in places:
        path = ()
        for token in text[place : place + limit]:
            if token == BREAK:
                break
            path = (*path, token)
            counts[path] = counts.get(path, 0) + 1
    inside = {p: sum(n for q, n in counts.items() if len(q) == len(p) + 1 and q[:-1] == p) for p in counts}
    prob = {(): 1.0}
    for path in sorted(counts, key=len):
        if path:
            prob[path] = prob[path[:-1]] * counts[path] / inside[path[:-1]]
    return {p: v for p, v in prob.items() if p and v >= min_prob - 1e-12}


def test_probabilities_are_ratios_of_brute_force_counts():
    rng = random.Random(5)
    for letters in (2, 3, 8):
        index = Contexts(6)
        for document in grown_text(rng, letters, 4):
            index.extend([*document, BREAK])
        for _ in range(20):
            context = [rng.randrange(letters) for _ in range(4)]
            for _, places in index.matches(context):
                if len(places) > NEWEST:
                    continue
                known = naive_growth(index.text, places, 6, 0.1)
                tokens, parents, probs = grow(index, places, 6, 0.1, True)
                paths = []
                for token, parent in zip(tokens, parents, strict=True):
                    paths.append((*(paths[parent] if parent >= 0 else ()), token))
                assert len(set(paths)) == len(paths)
                for path, prob in zip(paths, probs, strict=True):
                    assert prob == pytest.approx(known[path])
                # Greedy: no path left out is more probable than one taken.
                left = [v for p, v in known.items() if p not in paths]
                if left and len(paths) == 6:
                    assert max(left) <= min(probs) + 1e-12
                siblings = {}
                for parent, prob in zip(parents, probs, strict=True):
                    siblings[parent] = siblings.get(parent, 0.0) + prob
                assert all(total <= (1.0 if p < 0 else probs[p]) + 1e-9 for p, total in siblings.items())


def test_suffix_takes_the_best_sum_and_its_budget_grows_with_the_match():
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    for length in (1, 3, 6):
        prompt = [*text, 0, *text[:length]]
        assert drafted(Suffix(alpha=1.0), prompt).tokens == tuple(text[length : 2 * length])
        assert drafted(Suffix(alpha=2.0, offset=1), prompt).tokens == tuple([*text, 0, *text][length : 3 * length + 1])
    assert drafted(Suffix(alpha=0.0), prompt).tokens == ()
    assert len(drafted(Suffix(num_tokens=2), prompt).tokens) == 2


def test_suffix_remembers_outputs_and_forgets_the_oldest():
    knob = Suffix(max_requests=2)
    drafter = knob.open(1, 100)

    def serve(prompt, output):
        drafter.start(0, Request(number=0, prompt=tuple(prompt)))
        drafter.finish(0, [*prompt, *output])

    def ask(ids):
        drafter.start(0, Request(number=0, prompt=tuple(ids)))
        return drafter.propose(0, ids, 9)

    serve([50, 51], [1, 2, 3, 4, 5])
    assert ask([1, 2, 3]).tokens == (4, 5)
    assert ask([1, 2, 3]).source == "suffix.past"
    # Outputs only: prompts are not remembered.
    assert ask([50]).tokens == ()
    serve([50], [6, 7, 8, 9])
    assert ask([1, 2, 3]).tokens == (4, 5)
    serve([50], [10, 11])
    assert ask([1, 2, 3]).tokens == ()
    assert ask([6, 7]).tokens == (8, 9)
    assert ask([10]).tokens == (11,)
    # No context reaches across outputs.
    assert ask([9]).tokens == ()
    assert Suffix(max_requests=0).open(1, 100).past.text == []


def test_long_repeats_cost_no_nodes():
    rng = random.Random(2)
    text = rng.sample(range(10_000), 500)
    index = Contexts(64)
    index.extend(text * FEW)
    assert all(child.children is None for child in index.root.children.values())
    assert index.matches(text[-64:])[0][0] == 64


# Token Recycling


def test_the_static_tree_has_the_paper_s_levels():
    parents, scores, levels = tree()
    depth = []
    for parent in parents:
        depth.append(0 if parent < 0 else depth[parent] + 1)
    assert [depth.count(d) for d in range(6)] == list(LEVELS) == [8, 21, 25, 15, 8, 3]
    assert len(parents) == 80 and sum(len(rank) for _, rank in levels) == 72
    assert all(scores[i] <= (1 if p < 0 else scores[p]) for i, p in enumerate(parents))


def test_recycle_drafts_by_the_table():
    drafter = Recycle().open(1, 50)
    assert drafter.propose(0, [1], 80).tokens == ()
    for token in range(50):
        drafter.table[token] = [(token * 3 + r) % 50 for r in range(8)]
    draft = drafter.propose(0, [9, 1], 80)
    assert len(draft.tokens) == 80
    for i, parent in enumerate(draft.parents):
        above = 1 if parent < 0 else draft.tokens[parent]
        rank = sum(p == parent for p in draft.parents[:i])
        assert draft.tokens[i] in drafter.table[above]
        if parent < 0:
            assert draft.tokens[i] == drafter.table[1][rank]
    assert drafter.propose(0, [9, 1], 20).tokens == draft.tokens[:20]


def test_recycle_drops_what_hangs_off_the_unknown():
    drafter = Recycle().open(1, 50)
    drafter.table[1] = range(2, 10)
    drafter.table[3] = range(10, 18)
    draft = drafter.propose(0, [1], 80)
    assert draft.tokens[:8] == tuple(range(2, 10))
    assert len(draft.tokens) > 8
    assert all(draft.tokens[p] == 3 for p in draft.parents[8:])


def test_the_deepest_accepted_node_writes_last():
    drafter = Recycle().open(1, 50)
    top = np.arange(5 * 8, dtype=np.int32).reshape(5, 8)
    drafter.observe(0, Seen(tokens=(1, 4, 4, 1, 4), parents=(-1, 0, 0, 2, 3), path=(0, 2, 3), new=(4, 1, 0), top=top))
    assert drafter.table[1].tolist() == top[3].tolist()
    assert drafter.table[4].tolist() == top[2].tolist()
    drafter.observe(0, Seen(tokens=(1, 4, 4), parents=(-1, 0, 0), path=(0,), new=(9,), top=top[:3]))
    assert drafter.table[4].tolist() == top[2].tolist()


def test_recycle_on_a_markov_model_accepts_at_every_step_once_it_has_seen_the_states():
    model = Strict(vocab=40, order=1, seed=3)
    loop = Loop(model, Plan((Recycle(),)), costs=FREE)
    for number in range(40):
        loop.submit(Request(number=number, prompt=(number,), max_tokens=2))
    list(loop)
    warm = loop.submit(Request(number=99, prompt=(7, 8), max_tokens=60))
    list(loop)
    pieces = loop.completed[warm].pieces
    assert all(p.drafted >= 1 for p in pieces[:-1])
    assert len(pieces) <= 60 / 7 + 1
    table = loop._drafter.table
    for token in range(40):
        best = np.argsort(-model.row([token]), kind="stable")[:8]
        assert table[token].tolist() == best.tolist()


def test_recycle_on_a_tiny_vocabulary():
    model = Strict(vocab=3, order=1, seed=1)
    (done,) = run(model, [Request(number=0, prompt=(0,), max_tokens=30)], Recycle())
    assert done.stats.passes < 15
