"""The paged tier under a form that hides stored tokens, which no form of the room does yet."""

from dataclasses import dataclass

import pytest
import torch
from tier_contract import Feed, kv_shape, oracle
from torch import Tensor

from steno.cache import CacheKnob, _paged
from steno.cache._dense import DenseForm
from steno.cache._paged import PagedTier
from steno.core import KVShape
from steno.core.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Thirds(CacheKnob):
    """A query sees the keys whose position is its own modulo 3, from 50 on."""

    def due(self, length: int) -> int:
        return length

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        return (query % 3 == key % 3) & (key >= 50)

    def open(self, shape: KVShape) -> PagedTier:
        return PagedTier(self, DenseForm(), shape)


@pytest.mark.parametrize("heads", [2, 8])
def test_visibility_goes_by_position_in_every_page(heads, monkeypatch):
    monkeypatch.setattr(_paged, "SCRATCH_BYTES", 4096)
    knob = Thirds()
    feed = Feed(knob, kv_shape(heads=heads), seeds=[1, 2, 3])
    for row, length in enumerate((133, 20, 64)):
        feed.grow(row, length)
    q, positions = feed.ask(5)
    out, lse = feed.held.attend(1, q, positions, 0.35)
    want, want_lse = oracle(knob, feed.held, 1, q, positions, 0.35)
    torch.testing.assert_close(out.double(), want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse.double(), want_lse, atol=1e-5, rtol=1e-5)
    # Row 1 holds 20 tokens and sees none of them.
    assert (lse[1] == -torch.inf).all()
    assert not out[1].any()


def test_a_state_of_another_shape_is_refused():
    feed = Feed(Thirds(), kv_shape(), seeds=[1, 2, 3])
    feed.grow(0, 10)
    tensors, meta = feed.held.state()
    for other in (kv_shape(batch=2), kv_shape(layers=3)):
        with pytest.raises(DataError, match=r"3 rows of \[2\] layers, and the session"):
            Thirds().open(other).load(tensors, meta)
