"""cache.dense: nothing is ever due, and a tier that is fed all the same gives back what it got."""

import torch
from tier_contract import kv_shape, text

from steno.cache._ledger import bits_per_value, resident_bytes
from steno.cache.dense import Dense


def test_nothing_is_due_and_all_is_seen():
    assert {Dense().due(n) for n in range(5000)} == {0}
    assert Dense().sees(torch.zeros(1, 1), torch.zeros(1, 4)) is None


def test_what_is_sealed_is_kept_as_it_is():
    shape = kv_shape(batch=2, dtype=torch.bfloat16)
    tier = Dense().open(shape)
    k, v = text(1, shape, 77)
    for start, end in ((0, 10), (10, 11), (11, 77)):
        for layer in range(2):
            tier.seal(1, layer, k[layer, :, start:end], v[layer, :, start:end])
    assert tier.sealed == (0, 77)
    keys, values, where = tier.materialise(1)
    assert torch.equal(keys[1], k[1].float())
    assert torch.equal(values[1], v[1].float())
    assert where.tolist() == [[-1] * 77, list(range(77))]
    assert bits_per_value(sum(resident_bytes(tier.storages()).values()), shape, 77) == 16


def test_sealing_is_done_when_the_last_layer_is():
    tier = Dense().open(kv_shape(batch=1, layers=3))
    k, v = text(1, kv_shape(), 5)
    for layer in range(2):
        tier.seal(0, layer, k[0], v[0])
        assert tier.sealed == (0,)
    tier.seal(0, 2, k[0], v[0])
    assert tier.sealed == (5,)


def test_attention_over_all_of_it_is_attention():
    shape = kv_shape(batch=1, layers=1, heads=6, groups=3)
    tier = Dense().open(shape)
    k, v = text(1, shape, 200)
    tier.seal(0, 0, k[0], v[0])
    q = torch.randn(1, 6, 5, 8, generator=torch.Generator().manual_seed(0))
    out, _ = tier.attend(0, q, torch.full((1, 5), 200), 8**-0.5)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    torch.testing.assert_close(out, want, atol=1e-5, rtol=1e-5)
