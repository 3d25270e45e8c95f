"""Searches: by hand, against searches written out naively, and through `generate`, the command line and the kit."""

import itertools
import json

import numpy as np
import pytest
from rig import Strict, naive_beam, scripted, search, softmax

from steno.core import Plan, make_knob
from steno.core.errors import CapsError, PlanError
from steno.decode import Request, generate
from steno.decode._hunt import Field
from steno.decode.search import lattice
from steno.decode.search._graph import Graph
from steno.decode.search.diverse_beam import DiverseBeam
from steno.decode.search.lattice import Lattice
from steno.tune._likelihood import log_prob


@pytest.mark.parametrize("width", [1, 3, 6])
@pytest.mark.parametrize("diversity", [0.0, 0.5])
def test_one_group_is_beam_search(width, diversity):
    for seed in range(4):
        model = Strict(vocab=7, seed=seed, end=2)
        want = naive_beam(model, (1, 3), width, 8, 0.7)
        found = search(
            model, DiverseBeam(groups=1, width=width, diversity=diversity, length_power=0.7), 8, (1, 3)
        ).found
        assert [h.tokens for h in found] == [text for text, _ in want]
        np.testing.assert_allclose([h.score for h in found], [score for _, score in want], atol=1e-5)


def test_without_diversity_all_groups_are_the_same_beam_search():
    model = Strict(vocab=7, seed=3, end=2)
    one = search(model, DiverseBeam(groups=1, width=3), 8)
    assert search(model, DiverseBeam(groups=4, width=3, diversity=0.0), 8).found == one.found


def test_a_wide_beam_finds_the_most_probable_text():
    model = Strict(vocab=4, seed=1)
    found = search(model, DiverseBeam(groups=1, width=64, length_power=0.0), 3)
    texts = list(itertools.product(range(4), repeat=3))
    scores = {text: log_prob(model, (0,), text) for text in texts}
    assert {h.tokens for h in found.found} == set(texts)
    assert found.tokens == max(texts, key=lambda text: scores[text])
    for h in found.found:
        assert h.score == pytest.approx(scores[h.tokens], abs=1e-5)


def test_diversity_by_hand():
    """The second group would take 0 as well; 0.5 nats of penalty make 1 the better (log 0.5 - 0.5 < log 0.4)."""
    model = scripted({(): [0.5, 0.4, 0.1], (0,): [0.2, 0.3, 0.5], (1,): [0.1, 0.1, 0.8]}, 3)
    found = search(model, DiverseBeam(groups=2, width=1), 2).found
    # Both then want 2; the second group pays log 0.8 - 0.5 for it, still more than log 0.1.
    assert {h.tokens: h.score * 2 for h in found} == pytest.approx({(1, 2): np.log(0.32), (0, 2): np.log(0.25)})
    # A tenth of a nat changes no choice: both groups find the same text, which is told once.
    assert [h.tokens for h in search(model, DiverseBeam(groups=2, width=1, diversity=0.1), 2).found] == [(0, 2)]


def test_a_large_diversity_parts_the_groups_at_every_step():
    model = Strict(vocab=12, seed=5)
    found = search(model, DiverseBeam(groups=4, width=1, diversity=1000.0), 10).found
    assert len(found) == 4
    assert all(len(set(step)) == 4 for step in zip(*(h.tokens for h in found), strict=True))


def test_texts_that_ended_do_not_go_on():
    model = scripted({(): [0.1, 0.6, 0.3], (1,): [0.9, 0.05, 0.05], (2,): [0.8, 0.1, 0.1]}, 3, end=0)
    done = search(model, DiverseBeam(groups=1, width=2, length_power=0.0), 5)
    assert [h.tokens for h in done.found] == [(1, 0), (2, 0)], "two beams are full before the 0 of the first step"
    assert (done.tokens, done.finish, done.text) == ((1, 0), "eos", "")
    assert search(model, DiverseBeam(groups=1, width=2), 5, ignore_eos=True).finish == "length"


def test_one_forward_a_step_for_all_groups():
    done = search(Strict(vocab=12, seed=5), DiverseBeam(groups=4, width=3), 10)
    assert done.stats.passes == 10 and len(done.pieces) == 1 and done.stats.tokens == 10


def test_stop_strings_and_shapers_apply():
    model = Strict(vocab=9, seed=2)
    free = search(model, DiverseBeam(groups=1), 6)
    text = "".join(f"{i}," for i in free.tokens)
    plan = Plan((DiverseBeam(groups=1),))
    asked = Request(number=0, prompt=(0,), max_tokens=6, stop=(text[4:8],))
    (done,) = generate(model, [asked], plan, text=lambda ids: "".join(f"{i}," for i in ids))
    assert (done.text, done.finish) == (text[: text.index(text[4:8])], "stop")
    only = Plan((DiverseBeam(groups=1, width=2), make_knob("decode.shape.top_k", {"k": 1})))
    (one,) = generate(model, [Request(number=0, prompt=(0,), max_tokens=6)], only)
    greedy, ids = [], [0]
    for _ in range(6):
        ids.append(int(model.row(ids).argmax()))
        greedy.append(ids[-1])
    assert [h.tokens for h in one.found] == [tuple(greedy)]


def test_a_session_that_cannot_fork_is_refused_with_the_remedy():
    class Stuck(Strict):
        def open(self, batch, capacity, cache=None):
            from dataclasses import replace

            session = super().open(batch, capacity, cache)
            caps = replace(session.caps, fork=False)
            session.__class__ = type("S", (type(session),), {"caps": property(lambda self: caps)})
            return session

    with pytest.raises(CapsError, match=r"needs sessions with 'fork'.*--backend"):
        search(Stuck(vocab=5), DiverseBeam())


def test_the_kit_says_that_a_search_promises_nothing():
    from steno.measure.conform import verify

    with pytest.raises(PlanError, match=r"steno bench decode\.search\.diverse_beam"):
        verify(Strict(vocab=9), Plan((DiverseBeam(),)))


def test_it_runs_from_the_command_line(capsys):
    from steno.cli.main import main

    with pytest.raises(SystemExit) as done:
        main(
            [
                "run",
                "table:16:0",
                "3 1 4",
                "--max-tokens",
                "5",
                "--json",
                "--set",
                "decode.search.diverse_beam.groups=2",
            ]
        )
    assert done.value.code == 0
    record = json.loads(capsys.readouterr().out)
    assert record["tokens"] == record["found"][0]["tokens"] and len(record["found"]) > 1


def test_log_prob_is_that_of_the_rows():
    model = Strict(vocab=9, seed=2, width=4)
    text = [3, 1, 4, 1, 5, 2, 6, 5, 3, 5]
    want = sum(np.log(softmax(model.row([7, *text[:i]])))[v] for i, v in enumerate(text))
    assert log_prob(model, (7,), text) == pytest.approx(want, abs=1e-4)


# Best-first lattice


def naive_best_first(model, prompt, knob, most):
    """The search without merging, over whole texts: (texts that were run to an end, texts that were expanded)."""
    heap, ended, expanded, text, score = [], {}, [], (), 0.0
    serial = itertools.count()
    while True:
        while text == () or (text[-1] != model.end and len(text) < most):
            if len(expanded) == knob.beams * most:
                return ended, expanded
            expanded.append(text)
            law = np.log(softmax(model.row([*prompt, *text])))
            first, *rest = np.argsort(-law, kind="stable")[: knob.k].tolist()
            for v in rest:
                rank = -(score + law[v]) / (len(text) + 1) ** knob.length_power
                heap.append((rank, next(serial), (*text, v), score + law[v]))
            text, score = (*text, first), score + law[first]
        ended[text] = score
        if not heap or len(expanded) == knob.beams * most:
            return ended, expanded
        heap.sort()
        _, _, text, score = heap.pop(0)


@pytest.mark.parametrize("beams", [1, 2, 5])
def test_without_merging_it_is_best_first_search(beams):
    for seed in range(4):
        model = Strict(vocab=7, seed=seed, end=2)
        knob = Lattice(beams=beams, k=3, ngram=0, texts=1000)
        done = search(model, knob, 7, (1, 3))
        ended, expanded = naive_best_first(model, (1, 3), knob, 7)
        assert {h.tokens: h.score * len(h.tokens) ** 0.75 for h in done.found} == pytest.approx(ended, abs=1e-5)
        assert done.stats.passes == len(expanded) <= beams * 7


def merged_graph(model, knob, most, prompt=(0,)):
    """The lattice a search built, and what came of it."""
    made = []

    class Kept(Graph):
        def __init__(self, ngram, **fields):
            super().__init__(ngram, **fields)
            made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lattice, "Graph", Kept)
        done = search(model, knob, most, prompt)
    return made[0], done


def test_a_merge_by_hand():
    """After 1 2 and after 3 2 the words are alike: 2 is expanded once, and both of its texts stand behind 3 as well."""
    table = {
        (): [0, 0.6, 0, 0.4], (1,): [0, 0, 1, 0], (3,): [0, 0, 1, 0], (1, 2): [0.7, 0.3, 0, 0], (1, 2, 1): [1, 0, 0, 0],
    }  # fmt: skip
    model = scripted(table, 4, end=0)
    _, done = merged_graph(model, Lattice(ngram=1, k=2, length_power=0.0), 5)
    assert {h.tokens for h in done.found} == {(1, 2, 0), (3, 2, 0), (1, 2, 1, 0), (3, 2, 1, 0)}
    scores = {h.tokens: h.score for h in done.found}
    assert scores[3, 2, 1, 0] == pytest.approx(np.log(0.4 * 0.3))
    assert done.stats.passes == 5, "the empty text, 1, 1 2, 1 2 1 and 3"


@pytest.mark.parametrize("order", [1, 2, 0])
@pytest.mark.parametrize("ngram", [1, 2, 4])
def test_a_lattice_has_no_circles_and_every_edge_was_among_the_best(order, ngram):
    for seed in range(3):
        model = Strict(vocab=6, order=order, seed=seed, end=2)
        knob = Lattice(ngram=ngram, k=3, beams=4, texts=1000)
        graph, done = merged_graph(model, knob, 9, (1, 3))
        place = {node: i for i, node in enumerate(graph.order())}
        for node, at in place.items():
            past = [1, 3, *graph.nodes[node].text]
            best = np.argsort(-model.row(past), kind="stable")[:3]
            law = np.log(softmax(model.row(past)))
            for child, cost in graph.nodes[node].edges:
                token = graph.nodes[child].text[-1]
                assert at < place[child]
                assert token in best and cost == pytest.approx(law[token], abs=1e-5)
        assert all(2 not in h.tokens[:-1] and (h.tokens[-1] == 2 or len(h.tokens) == 9) for h in done.found)


ZIPPED = {
    (): [0, 0.6, 0, 0.4, 0, 0], (1,): [0, 0, 1, 0, 0, 0], (3,): [0, 0, 1, 0, 0, 0],
    (1, 2): [0, 0, 0, 0, 0.7, 0.3], (3, 2): [0.2, 0, 0, 0, 0.8, 0],
    (1, 2, 4): [1, 0, 0, 0, 0, 0], (1, 2, 5): [1, 0, 0, 0, 0, 0],
}  # fmt: skip
"""1 2 4 and 3 2 4 end alike in two tokens."""


def test_zip_by_hand():
    """RCB leads 3 2 to the 4 that was run. ZIP makes one 2 of both: 3 2 5 is a text, the 0 that waits is not."""
    model = scripted(ZIPPED, 6, end=0)
    knob = {"ngram": 2, "k": 2, "length_power": 0.0}
    _, rcb = merged_graph(model, Lattice(**knob), 5)
    assert {h.tokens for h in rcb.found} == {(1, 2, 4, 0), (1, 2, 5, 0), (3, 2, 4, 0), (3, 2, 0)}
    _, zipped = merged_graph(model, Lattice(merge="zip", **knob), 5)
    assert {h.tokens for h in zipped.found} == {(1, 2, 4, 0), (1, 2, 5, 0), (3, 2, 4, 0), (3, 2, 5, 0)}
    scores = {h.tokens: h.score for h in zipped.found}
    assert scores[3, 2, 5, 0] == pytest.approx(np.log(0.4 * 0.3))
    # Of two edges between the same nodes the likelier stays: 4 after 3 2.
    assert scores[3, 2, 4, 0] == pytest.approx(np.log(0.4 * 0.8)) == scores[1, 2, 4, 0] - np.log(0.6 / 0.4)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("ngram", [1, 2, 3])
def test_a_zipped_lattice_has_no_circles_and_holds_what_was_run(order, ngram):
    for seed in range(3):
        model = Strict(vocab=6, order=order, seed=seed, end=2)
        knob = {"ngram": ngram, "k": 3, "beams": 4, "texts": 1024}
        graph, done = merged_graph(model, Lattice(merge="zip", **knob), 9, (1, 3))
        place = {node: i for i, node in enumerate(graph.order())}
        for node, at in place.items():
            assert not graph.merged(node)
            children = [child for child, _ in graph.nodes[node].edges]
            assert len(set(children)) == len(children)
            assert all(at < place[child] for child in children)
        assert all(2 not in h.tokens[:-1] and (h.tokens[-1] == 2 or len(h.tokens) == 9) for h in done.found)
        assert done.stats.passes <= 4 * 9


def test_merging_finds_more_texts_with_no_more_forwards():
    model = Strict(vocab=6, order=2, seed=1, end=2)
    apart = search(model, Lattice(ngram=0, beams=4, texts=1000), 12)
    shared = search(model, Lattice(ngram=3, beams=4, texts=1000), 12)
    assert shared.stats.passes <= apart.stats.passes
    assert len(shared.found) > 2 * len(apart.found)
    assert len(search(model, Lattice(ngram=3, beams=4, texts=5), 12).found) == 5


def test_ragged_rows_catch_up_in_chains_as_wide_as_the_session_takes():
    """Rows lack 7, 1 and 3 tokens at a width of 4: two forwards, and each law is that of its own text."""
    model = Strict(vocab=9, seed=2, width=4)
    session = model.open(1, 20)
    session.prefill([[5]])
    field = Field(session, Request(number=0, prompt=(5, 6)), 10, frozenset(), ())
    rows = field.open().fork([0, 0, 0])
    texts = [[1, 2, 3, 4, 5, 6], [], [7, 8]]
    laws = field.advance(rows, texts)
    assert field.forwards == 2 and rows.lengths == (8, 2, 4) and session.lengths == (1,)
    for law, text in zip(laws, texts, strict=True):
        np.testing.assert_allclose(np.exp(law), softmax(model.row([5, 6, *text])), atol=1e-6)
    with pytest.raises(AssertionError, match="every row lacks a token"):
        field.advance(rows, texts)


@pytest.mark.parametrize("crop", [True, False])
def test_a_ground_opens_sessions_on_other_pasts(crop):
    """What is held alike is kept where the session can crop; the prompt's own session stays as it was."""
    model = Strict(vocab=9, seed=2, crop=crop)
    session = model.open(1, 20)
    session.prefill([[5, 6, 7]])
    field = Field(session, Request(number=0, prompt=(5, 6, 7, 8)), 10, frozenset(), ())
    for held in ((), (5,), (5, 6, 1, 2), (5, 6, 7), (5, 6, 7, 8, 1), (3, 3)):
        opened = field.open(held)
        assert opened.lengths == (len(held),)
        (logits,) = field.reach(opened, [[*held, 4]])
        np.testing.assert_array_equal(logits, model.row([*held, 4]))
    assert field.open().lengths == session.lengths == (3,)
    assert field.reach(field.open((5,)), [[5]]) == [None], "a row that lacks nothing is not run"
    assert field.forwards == 6
