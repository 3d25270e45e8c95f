"""cache.adaquant: the budget is met and spent where it counts."""

from itertools import product

import pytest
import torch
from tier_contract import Feed, kv_shape, text

from steno.cache._ledger import resident_bytes
from steno.cache.adaquant import BITS, AdaQuant, allocate
from steno.core.errors import KnobError


def cost(norms, chosen) -> float:
    return sum(n * 2.0**-b for pair, bits in zip(norms, chosen, strict=True) for n, b in zip(pair, bits, strict=True))


def test_by_hand():
    """Three bits on average and keys five times as large: 5/16 + 1/4 is less than 5/8 + 1/8 and than 5/4 + 1/16."""
    assert allocate(((5.0, 1.0),), 3.0) == [(4, 2)]
    assert allocate(((1.0, 1.0),), 3.0) == [(3, 3)]
    assert allocate(((1.0, 5.0),), 3.0) == [(2, 4)]
    assert allocate(((5.0, 1.0),) * 3, 2.0) == [(2, 2)] * 3
    assert allocate(((5.0, 1.0),), 8.0) == [(8, 8)]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("budget", [2.0, 2.5, 3.0, 4.25, 6.0])
def test_no_other_choice_is_better(seed, budget):
    noise = torch.Generator().manual_seed(seed)
    norms = tuple(tuple(float(x) for x in pair) for pair in torch.rand(2, 2, generator=noise) * 10)
    chosen = allocate(norms, budget)
    assert sum(b for pair in chosen for b in pair) <= budget * 4
    best = min(cost(norms, ((a, b), (c, d))) for a, b, c, d in product(BITS, repeat=4) if a + b + c + d <= budget * 4)
    assert cost(norms, chosen) == pytest.approx(best, rel=1e-12)


def test_a_larger_side_gets_no_fewer_bits():
    for scale in (1, 2, 4, 8, 64):
        pair = allocate(((float(scale), 1.0),) * 2, 3.0)
        assert all(k >= v for k, v in pair)


def test_layers_are_stored_in_their_own_bits():
    """Layer 0 has the larger keys, layer 1 the larger values; a block of 32 tokens of two heads of 8 channels."""
    knob = AdaQuant(key_norms=(9.0, 1.0), value_norms=(1.0, 9.0), residual=0, block=32)
    assert allocate(((9.0, 1.0), (1.0, 9.0)), knob.bits) == [(4, 2), (2, 4)]
    tier = knob.open(kv_shape(batch=1))
    k, v = text(1, kv_shape(batch=1), 32)
    for layer in range(2):
        tier.seal(0, layer, k[layer], v[layer])
    sizes = [[part.numel() for part in tier.storages()[name]] for name in ("keys", "values")]
    assert sizes == [[2 * 32 * 8 // 2, 2 * 32 * 8 // 4], [2 * 32 * 8 // 4, 2 * 32 * 8 // 2]]
    assert resident_bytes(tier.storages())["keys"] == sum(sizes[0])


def test_where_keys_are_larger_their_bits_are_worth_more():
    """Attention's error at 4 and 2 bits is below that at 2 and 4, as keys are made large."""
    shape = kv_shape(batch=1, layers=1, heads=2, groups=2, dim=32)
    k, v = (x[0] for x in text(1, shape, 256))
    q, positions = torch.randn(1, 2, 8, 32, generator=torch.Generator().manual_seed(0)), torch.full((1, 8), 256)
    want = torch.nn.functional.scaled_dot_product_attention(q, k[None], v[None])
    errors = []
    for keys, values in ((9.0, 1.0), (1.0, 9.0)):
        tier = AdaQuant(key_norms=(keys,), value_norms=(values,), residual=0).open(shape)
        tier.seal(0, 0, k, v)
        errors.append(float((tier.attend(0, q, positions, 32**-0.5)[0] - want).square().mean()))
    assert errors[0] < errors[1]


def test_norms_that_do_not_fit_are_refused():
    with pytest.raises(KnobError, match="key_norms must be between 0 and"):
        AdaQuant(key_norms=(-1.0,))
    for norms in ({"key_norms": (1.0,), "value_norms": (1.0,)}, {"key_norms": (1.0, 2.0)}, {"value_norms": (1.0, 2.0)}):
        with pytest.raises(KnobError, match=r"must name 2 layers, got \d and \d\. Measure them .*with_norms"):
            AdaQuant(**norms).open(kv_shape())
    feed = Feed(AdaQuant(residual=0), kv_shape(batch=1), seeds=[1])
    feed.grow(0, 64)
    assert feed.held.sealed == (64,)
