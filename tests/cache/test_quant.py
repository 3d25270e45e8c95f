"""|x - x_hat| <= scale / 2 against the scale that is stored."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steno.cache._pack import BITS
from steno.cache._quant import dequantise, quantise
from steno.core.errors import ModelError


def error_over_bound(x, bits, dim):
    """max over elements of |x - x_hat| / (scale / 2 + float32's own rounding)."""
    codes, scale, zero = quantise(x, bits, dim)
    assert codes.dtype == torch.int8
    assert int(codes.min()) >= -(2 ** (bits - 1))
    assert int(codes.max()) < 2 ** (bits - 1)
    assert scale.dtype == zero.dtype == torch.float16
    assert (scale >= 0).all()
    out = dequantise(codes.float(), scale, zero, bits).double()
    x = x.double()
    bound = scale.double() / 2 + 2**-24 * (x.abs().amax(dim, keepdim=True) * 2 + scale.double() * 2**bits)
    return float(((x - out).abs() / bound.clamp(min=1e-300)).max())


def test_by_hand():
    """0 1 2 3 and 0 0 3 3 in two bits are exact, 0 1.25 3 is off by a quarter of a step."""
    x = torch.tensor([[0.0, 1, 2, 3], [0, 0, 3, 3], [0, 1.25, 3, 3]])
    codes, scale, zero = quantise(x, 2, 1)
    assert scale.flatten().tolist() == [1, 1, 1]
    assert zero.flatten().tolist() == [0, 0, 0]
    assert codes.tolist() == [[-2, -1, 0, 1], [-2, -2, 1, 1], [-2, -1, 1, 1]]
    assert dequantise(codes.float(), scale, zero, 2).tolist() == [[0, 1, 2, 3], [0, 0, 3, 3], [0, 1, 3, 3]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", BITS)
def test_half_a_step(bits, dtype):
    noise = torch.Generator().manual_seed(bits)
    for spread, shift in ((1, 0), (1e-3, 100), (1e3, -5e3), (3e-5, 0), (1e-7, 0), (1e-9, 1)):
        x = (torch.randn(40, 32, generator=noise) * spread + shift).to(dtype)
        assert error_over_bound(x, bits, 1) <= 1
        assert error_over_bound(x, bits, 0) <= 1


@given(
    st.sampled_from(BITS),
    st.lists(st.floats(-65504, 65504, width=32), min_size=2, max_size=12),
)
@settings(max_examples=300, deadline=None)
def test_half_a_step_for_any_numbers(bits, numbers):
    assert error_over_bound(torch.tensor([numbers]), bits, 1) <= 1


@pytest.mark.parametrize("bits", BITS)
def test_a_constant_group_is_exact(bits):
    held = torch.tensor([0.0, -0.0, 1.0, -3.25, 65504.0, -65504.0, 2.0**-14, 6e-8]).half().float()
    for dtype in (torch.float32, torch.float16):
        x = held.to(dtype)[:, None].expand(-1, 7)
        codes, scale, zero = quantise(x, bits, 1)
        assert not scale.any()
        assert (codes == -(2 ** (bits - 1))).all()
        assert torch.equal(dequantise(codes.float(), scale, zero, bits), x.float())
    # Every bfloat16 number of ordinary size is a float16 number.
    x = (torch.randn(64, 1) * 10).to(torch.bfloat16).expand(-1, 5)
    codes, scale, zero = quantise(x, bits, 1)
    assert torch.equal(dequantise(codes.float(), scale, zero, bits), x.float())


def test_more_bits_are_closer():
    x = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    errors = []
    for bits in BITS:
        codes, scale, zero = quantise(x, bits, 1)
        errors.append(float((dequantise(codes.float(), scale, zero, bits) - x).square().mean()))
    assert all(a > 3 * b for a, b in pairwise(errors))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e6, -1e6])
def test_what_float16_cannot_hold_is_refused(bad):
    x = torch.zeros(4, 8)
    x[2, 3] = bad
    with pytest.raises(ModelError, match=r"not finite, or spread beyond float16.*Use cache\.dense"):
        quantise(x, 4, 1)
