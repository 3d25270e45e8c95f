"""Codes go into exactly as many bits as they have, and come back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steno.cache._pack import BITS, pack, unpack, width


def test_by_hand():
    """-2 -1 0 1 in two bits are 10 11 00 01, the first code lowest."""
    assert pack(torch.tensor([-2, -1, 0, 1], dtype=torch.int8), 2).view(torch.uint8).tolist() == [0b01001110]
    # 3 bits: pairs of low bits in two planes, then the sign bits. -4 .. 3 are 100 101 110 111 000 001 010 011.
    packed = pack(torch.arange(-4, 4, dtype=torch.int8), 3).view(torch.uint8).tolist()
    assert packed == [0b10001000, 0b11011101, 0b00001111]


@given(st.sampled_from(BITS), st.integers(1, 70), st.integers(1, 3), st.integers(0, 2**20))
@settings(max_examples=150, deadline=None)
def test_round_trip(bits, count, rows, seed):
    noise = torch.Generator().manual_seed(seed)
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, 2, count), generator=noise).to(torch.int8)
    before = codes.clone()
    packed = pack(codes, bits)
    assert packed.dtype == torch.int8
    assert packed.shape == (rows, 2, width(count, bits))
    assert packed.untyped_storage().data_ptr() != codes.untyped_storage().data_ptr()
    out = unpack(packed, bits, count)
    assert out.dtype == torch.float32
    assert torch.equal(out, codes.float())
    assert torch.equal(codes, before)


@pytest.mark.parametrize("bits", BITS)
def test_every_code_of_every_neighbour(bits):
    values = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1), dtype=torch.int8)
    pairs = torch.cartesian_prod(values, values).flatten()
    assert torch.equal(unpack(pack(pairs, bits), bits, len(pairs)), pairs.float())


@pytest.mark.parametrize("bits", BITS)
def test_no_bit_to_spare(bits):
    for dim in (8, 16, 64, 80, 96, 128, 256):
        packed = pack(torch.zeros(4, dim, dtype=torch.int8), bits)
        assert packed.untyped_storage().nbytes() * 8 == 4 * dim * bits
    # A last byte, or a last three bytes, is the most that an odd row adds.
    assert [width(count, bits) for count in (1, 7, 9)] == {2: [1, 2, 3], 3: [3, 3, 6], 4: [1, 4, 5], 8: [1, 7, 9]}[bits]
