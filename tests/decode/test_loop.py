"""The loop: whatever is drafted, batched or cut, what comes out is plain decoding."""

import random
from itertools import permutations

import pytest
from rig import DRAFTERS, FREE, KINDS, Hostile, Strict, plain, requests, run

from steno.core import Plan
from steno.core.errors import PlanError, PromptError
from steno.decode import Completion, CostTable, Loop, Request, generate
from steno.decode._budget import Budget
from steno.decode.accept.greedy import Greedy
from steno.decode.accept.gumbel import Gumbel
from steno.decode.draft.lookup import Lookup
from steno.decode.draft.recycle import Recycle
from steno.decode.draft.suffix import Suffix
from steno.decode.shape.min_p import MinP
from steno.decode.shape.repetition import Repetition
from steno.decode.shape.temperature import Temperature
from steno.decode.shape.top_k import TopK
from steno.models.table import TableModel

MODELS = (
    Strict(vocab=24, order=2, seed=1),
    Strict(vocab=24, order=1, seed=2, end=3),
    Strict(vocab=6, order=0, seed=3, end=5),
    Strict(vocab=24, order=2, seed=4, tree=False, crop=False, width=7),
    Strict(vocab=24, order=1, seed=5, block=4, end=9),
    Strict(vocab=24, order=2, seed=6, inexact=True),
    Strict(vocab=24, order=2, seed=7, width=1),
)


def check(model, asked, done, plan=Plan()):
    for request, completion in zip(asked, done, strict=True):
        assert completion.request is request
        assert (completion.tokens, completion.finish) == plain(model, request, plan)
        honest(completion)


def honest(completion: Completion) -> None:
    """Counts agree with one another and with the pieces."""
    stats = completion.stats
    assert stats.tokens == len(completion.tokens) == sum(len(p.tokens) for p in completion.pieces)
    assert sum((p.tokens for p in completion.pieces), ()) == completion.tokens
    assert stats.accepted == sum(p.drafted for p in completion.pieces) <= stats.drafted
    assert sum(stats.histogram.values()) == len(completion.pieces) <= stats.passes
    assert sum(k * n for k, n in stats.histogram.items()) == stats.accepted
    assert all(p.source == "" for p in completion.pieces if not p.drafted)


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("model", MODELS, ids=range(len(MODELS)))
@pytest.mark.parametrize("drafter", [None, *DRAFTERS], ids=lambda d: d.name.rpartition(".")[2] if d else "plain")
def test_greedy_is_plain_greedy(drafter, model, batch):
    asked = requests(9, vocab=model.vocab, seed=batch)
    check(model, asked, run(model, asked, *([drafter] if drafter else []), batch=batch))


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("drafter", [None, *DRAFTERS], ids=lambda d: d.name.rpartition(".")[2] if d else "plain")
def test_gumbel_is_plain_sampling_with_that_seed(drafter, batch):
    for model in (MODELS[1], MODELS[3], MODELS[5]):
        knobs = (Repetition(penalty=1.3), Temperature(temperature=0.6), TopK(k=8), MinP(p=0.02))
        asked = requests(9, vocab=model.vocab, seed=10 + batch)
        done = run(model, asked, *knobs, *([drafter] if drafter else []), batch=batch)
        check(model, asked, done, Plan(knobs))


@pytest.mark.parametrize("acceptor", [Greedy(), Gumbel()], ids=["greedy", "gumbel"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_drafter_changes_nothing(kind, acceptor, monkeypatch):
    for model in MODELS:
        monkeypatch.setattr(Hostile, "model", model, raising=False)
        asked = requests(7, vocab=model.vocab, seed=21)
        check(model, asked, run(model, asked, Hostile(kind=kind), acceptor, batch=3), Plan((acceptor,)))


@pytest.mark.parametrize("most", [0, 1, 2, 5, 12, 13, 14])
def test_a_perfect_draft_is_cut_at_max_tokens(most, monkeypatch):
    model = Strict(vocab=24, order=2, seed=1)
    monkeypatch.setattr(Hostile, "model", model, raising=False)
    asked = [Request(number=0, prompt=(1, 2), max_tokens=most)]
    (done,) = run(model, asked, Hostile(kind="truth"))
    check(model, asked, [done])
    assert done.finish == "length"
    # 12 drafts and the token after them come with one pass, and never a draft that could not be used.
    assert done.stats.passes == -(-most // 13)
    assert done.stats.drafted == done.stats.accepted == most - done.stats.passes


def test_a_perfect_draft_is_cut_at_the_end_token_wherever_it_stands(monkeypatch):
    for place in range(1, 15):
        chain = [0, *range(10, 10 + place - 1), 3, 5, 5, 5, 5]
        model = Strict(
            vocab=32, end=3, script=lambda past, chain=chain: one_hot(32, chain[min(len(past), len(chain) - 1)])
        )
        monkeypatch.setattr(Hostile, "model", model, raising=False)
        for batch in (1, 2):
            asked = [Request(number=i, prompt=(0,), max_tokens=40) for i in range(2)]
            done = run(model, asked, Hostile(kind="truth"), batch=batch)
            check(model, asked, done)
            for completion in done:
                assert completion.finish == "eos"
                assert completion.tokens == (*range(10, 10 + place - 1), 3)
        (on,) = run(model, [Request(number=0, prompt=(0,), max_tokens=40, ignore_eos=True)], Hostile(kind="truth"))
        assert len(on.tokens) == 40 and on.finish == "length"


def one_hot(vocab, token):
    return [4.0 if i == token else 0.0 for i in range(vocab)]


def test_the_context_ends_a_row():
    for drafter in (None, *DRAFTERS):
        model = Strict(vocab=24, order=2, seed=1, context=20)
        asked = [Request(number=n, prompt=tuple(range(n + 1)), max_tokens=100) for n in (0, 5, 19)]
        done = run(model, asked, *([drafter] if drafter else []), batch=2)
        # The last token of a full row needs no KV, so a row of 20 yields one more.
        assert [len(c.tokens) for c in done] == [20, 15, 1]
        assert [c.finish for c in done] == ["context"] * 3
        for request, completion in zip(asked, done, strict=True):
            assert completion.tokens == plain(model, request)[0][: len(completion.tokens)]
        (short,) = run(model, [Request(number=0, prompt=(1,) * 20, max_tokens=1)])
        assert short.finish == "length"


def test_rows_are_reused_and_order_and_company_do_not_matter():
    model = Strict(vocab=16, order=2, seed=9, end=2)
    knobs = (Temperature(temperature=0.8), Suffix(), Gumbel())
    asked = requests(4, vocab=16, seed=5, most=20)
    alone = {r.number: run(model, [r], *knobs)[0].tokens for r in asked}
    for order in permutations(asked):
        for batch in (1, 2, 3):
            done = run(model, order, *knobs, batch=batch)
            assert {c.request.number: c.tokens for c in done} == alone
            assert [c.request for c in done] == list(order)


def test_seeds_and_numbers_name_different_texts():
    model = TableModel(vocab=64, order=2, seed=9)
    warm = (Temperature(temperature=1.0),)
    texts = {
        run(model, [Request(number=n, prompt=(1, 2), max_tokens=12, seed=s)], *warm)[0].tokens
        for n in (0, 1)
        for s in (0, 1)
    }
    assert len(texts) == 4


def test_a_batch_takes_few_forwards():
    model = Strict(vocab=24, order=2, seed=1)
    asked = [Request(number=i, prompt=(i, 1), max_tokens=10 + i) for i in range(8)]
    loop = Loop(model, batch=4)
    for request in asked:
        loop.submit(request)
    list(loop)
    # Continuous: the 8 texts of 108 tokens take little more than a quarter of that.
    assert 27 <= loop.forwards <= 34


def test_requests_may_join_a_running_loop():
    model = Strict(vocab=24, order=2, seed=1)
    asked = requests(6, vocab=24, seed=2, most=9)
    loop = Loop(model, Plan((Recycle(),)), batch=2, costs=FREE)
    tickets = [loop.submit(asked[0])]
    waiting = list(asked[1:])
    while loop.busy or waiting:
        loop.step()
        if waiting:
            tickets.append(loop.submit(waiting.pop(0)))
    check(model, asked, [loop.completed[t] for t in tickets])
    assert not loop.step()


def test_streaming_hands_out_the_pieces_of_the_completions():
    model = Strict(vocab=24, order=1, seed=2)
    asked = requests(5, vocab=24, seed=3)
    heard = []
    done = run(model, asked, Lookup(), batch=2, on_piece=heard.append, text=spell)
    for completion in done:
        assert tuple(p for p in heard if p.number == completion.request.number) == completion.pieces
        assert "".join(p.text for p in completion.pieces) == completion.text == spell(completion.tokens)


def spell(ids):
    return "".join(chr(97 + i) for i in ids)


@pytest.mark.parametrize("stop", [("e",), ("cd",), ("bcd",), ("xx", "de"), ("abcd", "d"), ("zz",), ("gh", "fgh")])
def test_stop_strings_cut_text_across_token_borders(stop, monkeypatch):
    words = ["a", "bc", "d", "e", "fg", "h", "ij"]
    chain = [0, *range(7)]
    model = Strict(vocab=8, script=lambda past: one_hot(8, chain[len(past) % 8]))
    monkeypatch.setattr(Hostile, "model", model, raising=False)
    whole = "abcdefghij"
    cut = min((whole.find(s) for s in stop if s in whole), default=len(whole))

    def text(ids):
        return "".join(words[i] for i in ids)

    outs = []
    for drafter in ((), (Hostile(kind="truth"),), (Hostile(kind="flaky"),)):
        (done,) = run(model, [Request(number=0, prompt=(7,), max_tokens=7, stop=stop)], *drafter, text=text)
        assert done.text == whole[:cut]
        assert done.finish == ("length" if cut == len(whole) else "stop")
        assert "".join(p.text for p in done.pieces) == done.text
        honest(done)
        outs.append(done.tokens)
    assert outs[0] == outs[1] == outs[2]


def test_text_that_might_become_a_stop_string_is_held_back():
    chain = [0, 0, 1, 0, 2, 3]
    model = Strict(vocab=4, script=lambda past: one_hot(4, chain[min(len(past), 5)]))
    pieces = []
    asked = [Request(number=0, prompt=(0,), max_tokens=5, stop=("abx",))]
    (done,) = run(model, asked, on_piece=pieces.append, text=lambda ids: "".join("abcd"[i] for i in ids))
    assert [p.text for p in pieces] == ["", "", "ab", "ac", "d"]
    assert done.text == "abacd"


def test_a_character_of_several_tokens_comes_out_whole():
    chain = [0, 1, 2, 3, 4]
    data = [b"", b"\xc3", b"\xa9", b"!", b"\xe2"]
    model = Strict(vocab=5, script=lambda past: one_hot(5, chain[min(len(past), 4)]))
    pieces = []
    asked = [Request(number=0, prompt=(0,), max_tokens=4, stop=("?",))]
    (done,) = run(
        model, asked, on_piece=pieces.append, text=lambda ids: b"".join(data[i] for i in ids).decode("utf-8", "replace")
    )
    assert [p.text for p in pieces] == ["", "é", "!", "\ufffd"]
    assert done.text == "é!\ufffd"


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request(number=7, prompt=()), "request 7: the prompt is empty. Give it"),
        (Request(number=7, prompt=(1,) * 33), "the prompt has 33 tokens and the context holds 32. Shorten"),
        (Request(number=7, prompt=(1, 99)), "token id 99 is outside the model's vocabulary of 24. Use the model's own"),
        (Request(number=7, prompt=(-1, 9)), "token id -1 is outside"),
        (Request(number=7, prompt=(1,), max_tokens=-1), "max_tokens must be 0 or more, got -1"),
        (Request(number=7, prompt=(1,), stop=("x",)), r"no decoder was given. Pass text="),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_runs(request_, words):
    model = Strict(vocab=24, context=32)
    heard = []
    with pytest.raises(PromptError, match=words):
        run(model, [Request(number=0, prompt=(1,), max_tokens=3), request_], on_piece=heard.append)
    assert not heard
    with pytest.raises(PromptError, match=words):
        Loop(model).submit(request_)


def test_an_empty_stop_string_is_refused():
    with pytest.raises(PromptError, match="an empty stop string stops everywhere"):
        run(Strict(vocab=4), [Request(number=0, prompt=(1,), stop=("",))], text=spell)


def test_two_drafters_are_a_clash_and_no_rows_are_an_error():
    model = Strict(vocab=24)
    with pytest.raises(PlanError, match=r"decode.draft.lookup cannot stand beside decode.draft.recycle"):
        Loop(model, Plan((Lookup(), Recycle())))
    with pytest.raises(PlanError, match="batch: a loop needs at least 1 row, got 0"):
        generate(model, [Request(number=0, prompt=(1,))], batch=0)


def test_nothing_asked_is_nothing_done():
    assert generate(Strict(vocab=4), []) == []


def test_a_chain_session_gets_the_best_path_of_a_tree(monkeypatch):
    model = Strict(vocab=24, order=2, seed=1, tree=False)
    monkeypatch.setattr(Hostile, "model", model, raising=False)
    (done,) = run(model, [Request(number=0, prompt=(1, 2), max_tokens=25)], Hostile(kind="forest"))
    assert done.stats.accepted / done.stats.passes == 4


@pytest.mark.parametrize("knobs", [(), (Temperature(temperature=0.9),)], ids=["greedy", "gumbel"])
@pytest.mark.parametrize(
    "drafter", [*DRAFTERS[3:], *(Hostile(kind=k) for k in ("tree", "forest", "twins"))], ids=range(5)
)
def test_inexact_trees_are_confirmed_and_the_second_pass_is_counted(drafter, knobs, monkeypatch):
    model = Strict(vocab=24, order=1, seed=1, inexact=True, end=4)
    monkeypatch.setattr(Hostile, "model", model, raising=False)
    monkeypatch.setattr(Budget, "choose", lambda self, drafts: list(drafts))
    asked = requests(9, vocab=24, seed=11)
    for batch in (1, 3):
        loop = Loop(model, Plan((*knobs, drafter)), batch=batch, costs=FREE)
        tickets = [loop.submit(request) for request in asked]
        list(loop)
        done = [loop.completed[ticket] for ticket in tickets]
        check(model, asked, done, Plan(knobs))
        assert sum(c.stats.passes for c in done) > sum(len(c.pieces) for c in done)
        if batch == 1:
            assert sum(c.stats.passes for c in done) == loop.forwards


def test_times_are_kept_apart_and_add_up():
    model = Strict(vocab=24, order=2, seed=1)
    (done,) = run(model, [Request(number=0, prompt=tuple(range(20)), max_tokens=30)], Suffix())
    stats = done.stats
    assert stats.prefill_s > 0
    assert stats.decode_s >= stats.draft_s + stats.forward_s + stats.verify_s - 1e-9
    assert min(stats.draft_s, stats.forward_s, stats.verify_s) > 0


def test_costs_are_measured_once_per_model_and_leave_the_session_as_it_was(monkeypatch):
    model = Strict(vocab=24, order=2, seed=77, width=32)
    asked = [Request(number=n, prompt=(1, 2, 3), max_tokens=20) for n in range(3)]
    taken = []
    measure = CostTable.measure
    monkeypatch.setattr(CostTable, "measure", lambda *a, **k: taken.append(1) or measure(*a, **k))
    for _ in range(3):
        check(model, asked, generate(model, asked, Plan((Recycle(),)), batch=1))
    assert len(taken) == 1
    session = model.open(2, 50)
    session.prefill([[1, 2, 3], []])
    table = CostTable.measure(session, rows=[0])
    assert session.lengths == (3, 0)
    assert sorted(table.seconds) == [1, 2, 4, 8, 16, 32]


@pytest.mark.slow
def test_long_random_runs():
    rng = random.Random(0)
    for _ in range(60):
        model = Strict(
            vocab=rng.choice([2, 5, 24, 100]), order=rng.choice([0, 1, 2, 3]), seed=rng.randrange(100),
            end=rng.choice([-1, 0, 1]), tree=rng.random() < 0.7, crop=rng.random() < 0.7,
            width=rng.choice([1, 2, 5, 100]), block=rng.choice([0, 0, 1, 3, 16]), inexact=rng.random() < 0.3,
        )  # fmt: skip
        knobs = rng.choice(
            [(), (Temperature(temperature=0.5),), (Repetition(penalty=1.5), Temperature(temperature=1.0))]
        )
        asked = requests(rng.randint(1, 12), vocab=model.vocab, seed=rng.randrange(100), most=120)
        for drafter in DRAFTERS:
            done = run(model, asked, *knobs, drafter, batch=rng.choice([1, 2, 5, 16]))
            check(model, asked, done, Plan(knobs))
