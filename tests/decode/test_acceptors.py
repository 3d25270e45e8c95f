"""Acceptors keep the law: chi-square and total variation against the exact one, with fixed seeds."""

import itertools

import numpy as np
import pytest
from rig import FREE, Hostile, Strict, run, softmax

from steno.core import Key
from steno.decode import Request, _noise
from steno.decode._law import draw
from steno.decode._noise import gumbel
from steno.decode.accept.greedy import Greedy
from steno.decode.accept.gumbel import Gumbel
from steno.decode.accept.residual import Residual, accepts, remainder
from steno.decode.base import Draft
from steno.decode.shape.temperature import Temperature

P = np.array([0.1, 0.5, 0.2, 0.1, 0.05, 0.05])
Q = np.array([0.6, 0.3, 0.04, 0.03, 0.02, 0.01])
TRIALS = 10_000


class Laws:
    """A view whose law after every node is `p`."""

    def __init__(self, p, number, purposes=None):
        with np.errstate(divide="ignore"):
            self.row = np.log(p).astype(np.float32)
        self.number = number
        self.drawn = []

    def logits(self, node):
        return self.row

    def best(self, node):
        return int(self.row.argmax())

    def key(self, node, purpose):
        self.drawn.append((node, purpose))
        return Key(0, self.number, 100 + node, purpose)


def first_tokens(acceptor, propose, p=P, trials=TRIALS):
    """Counts of the first token that comes out."""
    counts = np.zeros(len(p))
    for number in range(trials):
        draft = propose(number)
        path, after = acceptor.verify(draft, Laws(p, number))
        counts[draft.tokens[path[0]] if path else after] += 1
    return counts


def distance(counts, p):
    return 0.5 * np.abs(counts / counts.sum() - p).sum()


def chi_square(counts, p):
    """Chi-square over what is possible; infinite where the impossible came out."""
    if counts[p == 0].any():
        return np.inf
    expected = counts.sum() * p[p > 0]
    return float((((counts[p > 0] - expected) ** 2) / expected).sum())


# The 1 - 1e-5 quantile of chi-square with 5 degrees of freedom.
LIMIT = 30.86


def sampled(q, count=1, replace=True):
    """Children of the root sampled from `q`, with the laws they were sampled from."""

    def propose(number):
        law, tokens, laws = q.copy(), [], []
        for i in range(count):
            token = draw(law, Key(1, number, i, "draft").uniform())
            tokens.append(token)
            laws.append(law.copy())
            if not replace:
                law[token] = 0.0
                if not law.any():
                    break
                law /= law.sum()
        return Draft(tuple(tokens), (-1,) * len(tokens), (), np.array(laws, np.float32))

    return propose


SPIKE = np.array([0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
HALF = np.array([0.5, 0.0, 0.5, 0.0, 0.0, 0.0])
PROPOSALS = {
    "none": lambda number: Draft(),
    "one child": lambda number: Draft((0,), (-1,)),
    "three children": lambda number: Draft((0, 1, 2), (-1, -1, -1)),
    "all children": lambda number: Draft(tuple(range(6)), (-1,) * 6),
    "twins": lambda number: Draft((1, 1, 3, 1), (-1,) * 4),
    "sampled": sampled(Q),
    "sampled from p itself": sampled(P),
    "sampled from a spike": sampled(SPIKE),
    "sampled with zeros": sampled(HALF),
    "several with replacement": sampled(Q, 3),
    "several without replacement": sampled(Q, 3, replace=False),
    "all without replacement": sampled(Q, 6, replace=False),
    "spike, without replacement": sampled(SPIKE, 2, replace=False),
}


@pytest.mark.parametrize("name", PROPOSALS)
def test_residual_draws_from_the_law(name):
    counts = first_tokens(Residual(), PROPOSALS[name])
    assert chi_square(counts, P) < LIMIT
    assert distance(counts, P) < 0.017


@pytest.mark.parametrize("name", ["one child", "sampled", "several with replacement"])
@pytest.mark.parametrize(
    "p", [SPIKE, HALF, np.roll(HALF, 1), np.full(6, 1 / 6)], ids=["spike", "zeros", "disjoint", "flat"]
)
def test_residual_on_extreme_laws(name, p):
    assert chi_square(first_tokens(Residual(), PROPOSALS[name], p, 4000), p) < LIMIT


def test_residual_accepts_as_often_as_can_be():
    accepted = sum(bool(Residual().verify(sampled(Q)(n), Laws(P, n))[0]) for n in range(4000)) / 4000
    assert abs(accepted - np.minimum(P, Q).sum()) < 0.03
    own = [Residual().verify(sampled(P)(n), Laws(P, n))[0] for n in range(500)]
    assert all(own)


def test_residual_by_hand():
    """p = (1/4, 3/4); a chosen draft of token 0 stands if the coin is below 1/4, else token 1 is certain."""
    p = np.array([0.25, 0.75])
    draft = Draft((0,), (-1,))
    assert accepts(p, draft, 0, 0.2499)
    assert not accepts(p, draft, 0, 0.25)
    assert remainder(p, draft, 0).tolist() == [0.0, 1.0]
    drawn = Draft((0,), (-1,), (), np.array([[0.5, 0.5]], np.float32))
    assert accepts(p, drawn, 0, 0.499)
    assert not accepts(p, drawn, 0, 0.5)
    assert remainder(p, drawn, 0).tolist() == [0.0, 1.0]


def test_a_coin_of_zero_never_lets_the_impossible_out():
    p = np.array([0.0, 1.0])
    assert not accepts(p, Draft((0,), (-1,)), 0, 0.0)
    assert not accepts(p, Draft((0,), (-1,), (), np.array([[1.0, 0.0]], np.float32)), 0, 0.0)
    assert draw(p, 0.0) == 1
    assert draw(np.array([0.5, 0.5, 0.0]), np.nextafter(1.0, 0.0)) == 1


def test_an_empty_remainder_falls_back_to_the_law():
    p = np.array([0.5, 0.5])
    same = Draft((0,), (-1,), (), np.array([[0.5, 0.5]], np.float32))
    assert remainder(p, same, 0).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("acceptor", [Gumbel(), Greedy(), Residual()], ids=["gumbel", "greedy", "residual"])
def test_one_draw_per_node(acceptor):
    """However many drafts begin alike, each node is decided once: no stream is read twice."""
    view = Laws(P, 3)
    draft = Draft((1, 1, 1, 1, 2, 1), (-1, -1, -1, 0, 0, 3))
    acceptor.verify(draft, view)
    assert len(view.drawn) == len(set(view.drawn))
    if acceptor.name == "decode.accept.gumbel":
        nodes = [node for node, _ in view.drawn]
        assert nodes == sorted(set(nodes))


def test_gumbel_draws_from_the_law():
    assert chi_square(first_tokens(Gumbel(), PROPOSALS["none"]), P) < LIMIT
    assert chi_square(first_tokens(Gumbel(), PROPOSALS["three children"]), P) < LIMIT


def test_gumbel_accepts_a_chosen_draft_with_its_own_probability():
    accepted = sum(bool(Gumbel().verify(Draft((1,), (-1,)), Laws(P, n))[0]) for n in range(4000)) / 4000
    assert abs(accepted - 0.5) < 0.03


def test_noise_is_a_function_of_the_key_and_is_standard_gumbel():
    key = Key(5, 6, 7, "token")
    noise = gumbel(key, 200_000)
    assert (noise == gumbel(key, 200_000)).all()
    assert (noise[:10] == gumbel(key, 10)).all()
    assert np.isfinite(noise).all()
    assert abs(noise.mean() - 0.5772) < 0.01
    assert abs(noise.var() - np.pi**2 / 6) < 0.02
    others = [Key(6, 6, 7, "token"), Key(5, 7, 7, "token"), Key(5, 6, 8, "token"), Key(5, 6, 7, "accept")]
    assert all((gumbel(other, 8) != noise[:8]).all() for other in others)
    # Written down: a change here would change every sampled text.
    assert noise[:3].view(np.uint32).tolist() == [1066017224, 3202568764, 1056139141]


def test_noise_is_philox_and_two_logarithms():
    """Against integers of any size and double precision, at the ids of a whole block and of a rest."""
    assert philox([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]  # Random123's known answers
    assert philox([2**32 - 1] * 4, [2**32 - 1] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    key = Key(1, 2, 3, "token")
    k0, k1, c2, c3 = (key.bits(128) >> shift & 0xFFFFFFFF for shift in (0, 32, 64, 96))
    words = [philox([16 * (i // 64) + i % 16, 0, c2, c3], [k0, k1])[i % 64 // 16] for i in range(3001)]
    want = -np.log(-np.log1p(-(np.array(words, np.float64) + 0.5) * 2.0**-32))
    # The lower tail, which never decides, is coarser.
    assert (np.abs(gumbel(key, 3001) - want) < np.where(want > -1.5, 2e-6, 1e-3)).all()


def philox(counter, key):
    """Philox4x32-10 (Salmon et al. 2011, section 3.3)."""
    for _ in range(10):
        a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [b >> 32 ^ counter[1] ^ key[0], b & 0xFFFFFFFF, a >> 32 ^ counter[3] ^ key[1], a & 0xFFFFFFFF]
        key = [key[0] + 0x9E3779B9 & 0xFFFFFFFF, key[1] + 0xBB67AE85 & 0xFFFFFFFF]
    return counter


@pytest.mark.parametrize("vocab", [1, 5, 64, 100, 1024, 1500, 5000])
def test_draw_is_the_best_of_logits_and_noise(vocab):
    for number in range(20):
        key = Key(7, number, 0, "token")
        logits = np.random.default_rng(number).normal(size=vocab).astype(np.float32)
        logits[:: number + 2] = -np.inf if vocab > 1 else 0
        assert _noise.draw(key, logits) == int((logits + gumbel(key, vocab)).argmax())


@pytest.mark.parametrize(
    ("kind", "inexact", "trees"),
    [
        ("tree", False, True), ("twins", False, True), ("flaky", False, True), ("tree", True, True),
        ("sampled", False, True), ("sampled", True, True), ("sampled", False, False),
    ],
)  # fmt: skip
def test_the_loop_keeps_the_joint_law_of_two_tokens(kind, inexact, trees, monkeypatch):
    from steno.decode._budget import Budget

    model = Strict(vocab=5, order=0, seed=8, inexact=inexact, tree=trees)
    monkeypatch.setattr(Hostile, "model", model, raising=False)
    monkeypatch.setattr(Budget, "choose", lambda self, drafts: list(drafts))
    warm = Temperature(temperature=4.0)
    asked = [Request(number=n, prompt=(1, 2), max_tokens=2) for n in range(1500)]
    counts = np.zeros((5, 5))
    for done in run(model, asked, warm, Residual(), Hostile(kind=kind), batch=8, costs=FREE):
        counts[done.tokens] += 1
    exact = np.zeros((5, 5))
    first = softmax(model.row((1, 2)) / 4)
    for a, b in itertools.product(range(5), repeat=2):
        exact[a, b] = first[a] * softmax(model.row((1, 2, a)) / 4)[b]
    # The 1 - 1e-5 quantile with 24 degrees of freedom.
    assert chi_square(counts.ravel(), exact.ravel()) < 65.2
