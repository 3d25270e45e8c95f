"""cache.less: a state of fixed size stands in for what is dropped; where its kernel is exact, so is attention."""

import pytest
import torch
from tier_contract import Feed, attend_is_softmax_over_what_is_held, kv_shape, text

from steno.cache._ledger import resident_bytes
from steno.cache._recur import Kernel
from steno.cache._tables import write
from steno.cache._witness import Seen
from steno.cache.less import Less, dropped, miss

SMALL = {"residual": 0, "block": 4}


class Given(Kernel):
    """A kernel whose features are the first two channels, squared: its product is known."""

    def __init__(self) -> None:
        pass

    def ask(self, q):
        return q[..., :2].square()

    def tell(self, k):
        return k[..., :2].square()


def opened(knob: Less, **shape):
    tier = knob.open(kv_shape(batch=1, layers=1, heads=1, groups=1, dim=2, rope=None, **shape))
    tier.kernels = [Given()]
    return tier


def sealed(tier, k, v, q):
    for start in range(0, k.shape[1], 4):
        tier.observe(0, 0, q[:, start : start + 4], k[:, start : start + 4])
        tier.seal(0, 0, k[:, start : start + 4], v[:, start : start + 4])


def test_by_hand():
    """One token stays (the one looked at); three keys (1, 0), (0, 2), (1, 1) leave 1, 4 and 2 times their values."""
    tier = opened(Less(heavy=1, **SMALL))
    k = torch.tensor([[[5.0, 5], [1, 0], [0, 2], [1, 1]]])
    v = torch.tensor([[[7.0, 0], [1, 0], [0, 1], [2, 2]]])
    sealed(tier, k, v, torch.ones(1, 4, 2))
    notes = tier.noted(0, 0)
    assert notes["mass"].tolist() == [[2, 5]]
    assert notes["sums"].tolist() == [[[3, 2], [2, 6]]]
    q = torch.tensor([0.5, 0.1])
    mass = float((q**2) @ torch.tensor([2.0, 5]))
    heavy = float((k[0, 0] @ q).exp())
    want = (heavy * v[0, 0] + (q**2) @ torch.tensor([[3.0, 2], [2, 6]])) / (heavy + mass)
    out, lse = tier.attend(0, q.view(1, 1, 1, 2), torch.tensor([[4]]), 1.0)
    torch.testing.assert_close(out.flatten(), want)
    assert float(lse.exp()) == pytest.approx(heavy + mass, rel=1e-5)


def test_where_the_kernel_is_the_softmax_nothing_is_lost():
    """Keys of one channel, and a kernel that gives exp(q k) by its first terms: attention is that over everything."""

    class Taylor(Given):
        def ask(self, q):
            return torch.stack([q[..., 0] ** n for n in range(9)], -1)

        def tell(self, k):
            return torch.stack([k[..., 0] ** n / torch.tensor(float(n)).add(1).lgamma().exp() for n in range(9)], -1)

    noise = torch.Generator().manual_seed(0)
    k, v, q = torch.rand(3, 1, 40, 2, generator=noise).unbind(0)
    k[..., 1] = q[..., 1] = 0
    tier = opened(Less(heavy=6, **SMALL))
    tier.kernels = [Taylor()]
    sealed(tier, k, v, q)
    out, _ = tier.attend(0, q[None, :, :3], torch.full((1, 3), 40), 1.0)
    torch.testing.assert_close(out[0], (q[:, :3] @ k.mT).softmax(-1) @ v, atol=1e-4, rtol=0)
    state = tier.noted(0, 0)
    assert state["sums"].shape == (1, 9, 2)
    # Half the text or all of it: the state is as large.
    assert state["mass"].shape == (1, 9)


def trained(path, seed: int = 0) -> str:
    noise = torch.Generator().manual_seed(seed)
    names, sizes = ("ask1", "ask2", "tell1", "tell2"), ((8, 4), (4, 3)) * 2
    tables = {
        f"{i}.{n}": torch.randn(2, *s, generator=noise) for i in range(2) for n, s in zip(names, sizes, strict=True)
    }
    write(path / "k.safetensors", (2, 4, 2, 8), tables)
    return str(path / "k.safetensors")


def test_the_state_is_counted_saved_and_shared(tmp_path):
    """The room's contract again, with a kernel: a file cannot stand in its list."""
    from tier_contract import CHECKS

    name = trained(tmp_path)
    knob = Less(heavy=5, kernel=name, residual=2, block=4)
    feed = Feed(knob, kv_shape(batch=1), seeds=[3])
    feed.grow(0, 60)
    parts = resident_bytes(feed.held.storages())
    assert parts["sums"] == 2 * 2 * 3 * 8 * 4
    assert parts["mass"] == 2 * 2 * 3 * 4
    for check in CHECKS:
        if check is not attend_is_softmax_over_what_is_held:
            check(knob)


def test_attention_with_the_state_is_that_of_a_naive_reading(tmp_path):
    """Every dropped token by itself: its features times the query's, in the place of an exponential."""
    knob = Less(heavy=5, kernel=trained(tmp_path), residual=2, block=4)
    shape = kv_shape(batch=1)
    feed = Feed(knob, shape, seeds=[3])
    feed.grow(0, 60)
    k, v = text(3, shape, knob.due(60))
    q, positions = feed.ask(2)
    out, _ = feed.held.attend(1, q, positions, 0.2)
    kernel = feed.held.kernels[1]
    for h in range(4):
        g = h // 2
        stays = feed.held.materialise(1)[2][0, g].tolist()
        learnt = kernel.ask((q[0, h] * 0.2).expand(2, -1, -1))[g] @ kernel.tell(k[1])[g].mT
        weights = torch.where(
            torch.isin(torch.arange(len(k[1, g])), torch.tensor(stays)), (q[0, h] * 0.2 @ k[1, g].mT).exp(), learnt
        )
        torch.testing.assert_close(out[0, h], weights / weights.sum(-1, keepdim=True) @ v[1, g], atol=1e-4, rtol=1e-3)


def test_what_training_sees_dropped_is_what_the_form_drops():
    knob = Less(heavy=5, residual=2, block=4)
    shape = kv_shape(batch=1, layers=1)
    feed = Feed(knob, shape, seeds=[3])
    from tier_contract import queries

    k, v = (x[0] for x in text(3, shape, 30))
    seen = Seen(queries(3, shape, 30)[0], k, v)
    gone = dropped(knob, seen)
    assert not gone[:, :6].any()
    feed.grow(0, 29)
    for g in range(2):
        held = set(feed.held.materialise(0)[2][0, g].tolist())
        assert set(gone[g, 29].nonzero().flatten().tolist()) == set(range(knob.due(29))) - held


def test_a_step_against_the_gradient_helps():
    shape = kv_shape(batch=1, layers=1)
    k, v = (x[0] for x in text(3, shape, 40))
    seen = Seen(torch.randn(4, 40, 8, generator=torch.Generator().manual_seed(1)) / 4, k, v)
    gone = dropped(Less(heavy=5, residual=2, block=4), seen)
    noise = torch.Generator().manual_seed(0)
    weights = [torch.randn(2, a, b, generator=noise).div(3).requires_grad_() for a, b in ((8, 4), (4, 3)) * 2]
    kernel = Kernel((weights[0], weights[1]), (weights[2], weights[3]))
    rows = torch.arange(20, 40)
    before = miss(kernel, seen, gone, rows)
    before.backward()
    with torch.no_grad():
        for weight in weights:
            weight.sub_(0.01 * weight.grad / weight.grad.norm().clamp(min=1e-9))
    assert miss(kernel, seen, gone, rows).item() < before.item()
