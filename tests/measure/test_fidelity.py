"""Fidelity against sums by hand, a naive oracle, and models whose distance is known."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from steno.cache.affine import Affine
from steno.cache.window import Window
from steno.core import Plan
from steno.core.errors import ModelError, PromptError
from steno.measure.fidelity import Side, divergence, exact_kl, fidelity, log_softmax, lumped_kl, paired
from steno.models import ModelSpec, load
from steno.models.table import TableModel

TEXTS = [[int(i) for i in np.random.default_rng(s).integers(0, 24, n)] for s, n in enumerate((40, 2, 150))]


def noisy(scale, seed=1):
    """The table model of seed 0 with fixed noise on its logits."""
    plain, noise = TableModel(vocab=24, seed=0), TableModel(vocab=24, seed=seed)
    return TableModel(vocab=24, script=lambda past: plain.row(past) + scale * noise.row(past))


def test_log_softmax_is_stable_and_exact():
    rows = log_softmax(np.array([[1e4, 1e4 - 1, -np.inf], [0, 0, 0]], np.float32))
    np.testing.assert_allclose(np.exp(rows).sum(-1), 1, rtol=1e-15)
    assert rows[0, 2] == -np.inf
    np.testing.assert_allclose(rows[1], -math.log(3), rtol=1e-15)


def test_kl_by_hand():
    p, q = np.log([0.5, 0.5]), np.log([0.25, 0.75])
    assert exact_kl(p, q) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert exact_kl(p, p) == 0
    assert exact_kl(p, np.array([0.0, -np.inf])) == math.inf
    # What p forbids costs nothing.
    assert exact_kl(np.array([0.0, -np.inf]), p) == pytest.approx(math.log(2))


def test_lumped_kl_is_a_lower_bound_that_grows_to_the_exact_value():
    rng = np.random.default_rng(0)
    p, q = (log_softmax(rng.normal(size=(200, 64)) * 2) for _ in range(2))
    exact = exact_kl(p, q)
    for top in (1, 4, 16):
        bound = lumped_kl(p, q, top)
        assert (bound <= exact + 1e-12).all()
        assert (bound > 0).all()
    np.testing.assert_array_equal(lumped_kl(p, q, 64), exact)
    # A union that covers everything leaves an empty tail, which counts nothing.
    np.testing.assert_allclose(lumped_kl(p, p, 4), 0, atol=1e-15)


def test_lumped_kl_by_hand():
    p, q = np.log([[0.6, 0.3, 0.06, 0.04]]), np.log([[0.3, 0.6, 0.05, 0.05]])
    want = 0.6 * math.log(2) - 0.3 * math.log(2)
    assert lumped_kl(p, q, 2)[0] == pytest.approx(want)
    assert exact_kl(p, q)[0] > want


def test_equal_models_do_not_differ():
    side = Side(TableModel(vocab=24, seed=0))
    got = fidelity(side, side, TEXTS)
    assert got.exact
    assert (got.kl_mean, got.kl_max, got.kl_low, got.kl_high) == (0, 0, 0, 0)
    assert (got.top1, got.bits_delta, got.bits_error) == (1, 0, 0)
    assert got.tokens == sum(map(len, TEXTS)) - 3
    assert got.unit == "token"


def test_against_a_naive_oracle():
    one, two = TableModel(vocab=24, seed=0), noisy(0.3)
    got = fidelity(Side(one), Side(two), TEXTS)
    kl, same, nats = [], [], []
    for text in TEXTS:
        for at in range(1, len(text)):
            p, q = (np.exp(r := m.row(text[:at]).astype(float)) / np.exp(r).sum() for m in (one, two))
            kl.append(float((p * np.log(p / q)).sum()))
            same.append(p.argmax() == q.argmax())
            nats.append((-math.log(p[text[at]]), -math.log(q[text[at]])))
    assert got.kl_mean == pytest.approx(np.mean(kl))
    assert got.kl_max == pytest.approx(max(kl))
    assert got.kl_p50 == pytest.approx(np.quantile(kl, 0.5, method="higher"))
    assert got.kl_p50 < got.kl_p90 < got.kl_p99 <= got.kl_max
    assert got.kl_low < got.kl_mean < got.kl_high
    assert got.top1 == pytest.approx(np.mean(same))
    assert got.bits_base == pytest.approx(np.mean([n[0] for n in nats]) / math.log(2))
    assert got.bits_delta == pytest.approx(np.mean([n[1] - n[0] for n in nats]) / math.log(2))
    assert got.bits_error is not None
    lumped = fidelity(Side(one), Side(two), TEXTS, top=4)
    assert not lumped.exact
    assert 0 < lumped.kl_mean < got.kl_mean


def test_a_farther_model_is_farther():
    base = Side(TableModel(vocab=24, seed=0))
    near, far = (fidelity(base, Side(noisy(s)), TEXTS) for s in (0.05, 0.5))
    assert near.kl_mean < far.kl_mean
    assert near.top1 > far.top1


class Letters:
    """A tokenizer whose id i stands for i % 3 + 1 bytes."""

    def decode(self, ids):
        return "".join("x" * (i % 3 + 1) for i in ids)


def test_bits_per_byte_divide_by_the_bytes_of_what_was_predicted():
    side = Side(TableModel(vocab=24, seed=0))
    text = [2, 0, 1, 2]
    per_token = fidelity(side, side, [text])
    per_byte = fidelity(side, side, [text], tokenizer=Letters())
    assert per_byte.unit == "byte"
    # Ids 0, 1, 2 are predicted: 1 + 2 + 3 bytes.
    assert per_byte.bits_base * 6 == pytest.approx(per_token.bits_base * 3)


def test_forcing_stays_within_room():
    """A cache that changes form every 5 tokens must not be crossed by a chunk."""
    model = TableModel(vocab=24, seed=0)
    widths = []

    class Rooms:
        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def room(self):
            return tuple(5 - n % 5 for n in self.inner.lengths)

        def forward(self, nodes):
            widths.append((self.inner.lengths[0], nodes.tokens.shape[1]))
            return self.inner.forward(nodes)

    class Model:
        vocab, context, name = 24, 4096, "rooms"

        def open(self, batch, capacity, cache=None):
            return Rooms(model.open(batch, capacity, cache))

    paired(Side(Model()), Side(model), TEXTS[0])
    assert sum(w for _, w in widths) == len(TEXTS[0]) - 1
    assert all(at % 5 + width <= 5 for at, width in widths)
    assert max(w for _, w in widths) == 5


def test_greedy_continuations_are_compared():
    one, two = TableModel(vocab=24, seed=0), noisy(0.2)
    texts = [t[:5] for t in TEXTS if len(t) > 4]
    got = fidelity(Side(one), Side(two), texts, continue_tokens=12)
    assert got.continued == 12
    want = []
    for text in texts:
        a, b = list(text), list(text)
        for _ in range(12):
            a.append(int(one.row(a).argmax()))
            b.append(int(two.row(b).argmax()))
        want.append(divergence(a[5:], b[5:]))
    assert got.divergence == tuple(want)
    assert got.identical == want.count(None)
    assert any(at is not None for at in want)


@pytest.mark.slow
def test_a_compressed_cache_is_nearer_with_more_bits(tmp_path):
    """Forcing goes through the cache form: more bits, less KL; a window that holds everything, none at all."""
    pytest.importorskip("torch")
    sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
    import tiny

    model = load(
        ModelSpec(source=str(tiny.make("llama", tmp_path / "m")), backend="hf", pinned=True, width=8, threads=1)
    )
    texts = [[int(i) for i in np.random.default_rng(s).integers(0, tiny.VOCAB, 60)] for s in range(2)]

    def distance(form):
        return fidelity(Side(model), Side(model, Plan((form,))), texts)

    fine, coarse = (
        distance(Affine(key_bits=b, value_bits=b, group=8, value_group=8, residual=8, block=8)) for b in (8, 2)
    )
    assert 0 < fine.kl_mean < 1e-3 < coarse.kl_mean
    assert coarse.top1 < fine.top1
    narrow, wide = (distance(Window(sinks=2, window=w, block=4)) for w in (8, 64))
    assert wide.kl_max < 1e-9 < 1e-2 < narrow.kl_max


def test_divergence():
    assert divergence([1, 2], [1, 2]) is None
    assert divergence([], [1]) == 0


def test_what_cannot_be_compared_is_refused():
    side = Side(TableModel(vocab=24))
    with pytest.raises(PromptError, match="text 2 has 1"):
        fidelity(side, side, [[1, 2], [3]])
    with pytest.raises(PromptError, match="none came"):
        fidelity(side, side, [])
    with pytest.raises(ModelError, match="one vocabulary"):
        fidelity(side, Side(TableModel(vocab=25)), TEXTS)
    with pytest.raises(ModelError, match="NaN logits after token 3"):
        script = lambda past: np.full(24, np.nan if len(past) > 2 else 0.0)  # noqa: E731
        fidelity(side, Side(TableModel(vocab=24, script=script)), TEXTS)
    with pytest.raises(PromptError, match="longer than the context"):
        fidelity(Side(TableModel(vocab=24, context=8)), side, TEXTS)
    assert Side(TableModel(vocab=24)).plan == Plan()
