"""Bytes come from storages: shared ones count once, views count for the buffer they keep alive."""

import torch
from tier_contract import kv_shape

from steno.cache._ledger import bits_per_value, marginal_bytes, resident_bytes


def test_by_hand():
    a, b = torch.zeros(10), torch.zeros(3, dtype=torch.int8)
    assert resident_bytes({"a": [a], "b": [b, b]}) == {"a": 40, "b": 3}
    assert resident_bytes({"a": [a[2:4], a[:1], a.view(2, 5)], "again": [a]}) == {"a": 40, "again": 0}
    assert resident_bytes({}) == {}


def test_empty_tensors_weigh_nothing():
    assert resident_bytes({"a": [torch.zeros(0), torch.zeros(0)]}) == {"a": 0}


def test_a_fork_costs_what_it_adds():
    base = {"a": [torch.zeros(10)], "b": [torch.zeros(2)]}
    fork = {"a": [base["a"][0], torch.zeros(5)], "b": [torch.zeros(2)]}
    assert marginal_bytes(fork, base) == {"a": 20, "b": 8}


def test_the_dense_cache_in_bfloat16_has_16_bits():
    shape = kv_shape(layers=3, groups=2, dim=8)
    k = torch.zeros(3, 2, 100, 8, dtype=torch.bfloat16)
    assert bits_per_value(sum(resident_bytes({"k": [k], "v": [k.clone()]}).values()), shape, 100) == 16
