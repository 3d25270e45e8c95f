"""Softmax in parts is softmax of the whole; parts that see nothing weigh nothing."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steno.cache._lse import attend, merge


def test_by_hand():
    """Keys 0 and log 3 against q = 1: weights 1/4 and 3/4."""
    q = torch.ones(1, 1)
    parts = [
        attend(q, torch.zeros(1, 1), torch.tensor([[8.0]])),
        attend(q, torch.full((1, 1), 3.0).log(), torch.tensor([[4.0]])),
    ]
    out, lse = merge(parts)
    torch.testing.assert_close(out, torch.tensor([[5.0]]))
    torch.testing.assert_close(lse, torch.tensor([4.0]).log())


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 2**20))
@settings(max_examples=60, deadline=None)
def test_any_split_merges_to_the_whole(sizes, seed):
    noise = torch.Generator().manual_seed(seed)
    total = sum(sizes)
    q, k, v = (torch.randn(2, n, 4, generator=noise) * 2 for n in (3, total, total))
    seen = torch.rand(2, 3, total, generator=noise) < 0.7
    parts = []
    start = 0
    for size in sizes:
        span = slice(start, start + size)
        if size:
            parts.append(attend(q, k[:, span], v[:, span], seen[:, :, span]))
        else:
            parts.append((torch.zeros(2, 3, 4), torch.full((2, 3), -torch.inf)))
        start += size
    out, lse = merge(parts)
    scores = (q.double() @ k.double().mT).masked_fill(~seen, -torch.inf)
    want = torch.nan_to_num(scores.softmax(-1)) @ v.double()
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.double(), want, atol=1e-5, rtol=1e-5)


def test_parts_that_see_nothing():
    q, k, v = torch.randn(3, 1, 2, 4).unbind(0)
    blind = attend(q, k, v, torch.zeros(2, 2, dtype=torch.bool))
    assert not blind[0].any()
    assert (blind[1] == -torch.inf).all()
    out, lse = merge([blind, blind, blind])
    assert not out.any()
    assert (lse == -torch.inf).all()
    sighted = attend(q, k, v)
    out, lse = merge([blind, sighted])
    assert torch.equal(out, sighted[0])
    assert torch.equal(lse, sighted[1])


def test_large_scores_do_not_overflow():
    q = torch.full((1, 1), 1e4)
    out, lse = merge([attend(q, torch.full((1, 1), s), torch.full((1, 1), s)) for s in (-9.0, 9.0)])
    torch.testing.assert_close(out, torch.tensor([[9.0]]))
    torch.testing.assert_close(lse, torch.tensor([9e4]))
