"""cache.affine: the error bound on what a tier holds, its bytes, its schedule, its refusals."""

import pytest
import torch
from tier_contract import Feed, digest, fed, kv_shape, text
from torch.utils._python_dispatch import TorchDispatchMode

from steno.cache._ledger import bits_per_value, resident_bytes
from steno.cache.affine import Affine
from steno.core.errors import KnobError, ModelError

BITS = (8, 4, 3, 2)


def expected_bytes(knob: Affine, layers: int, groups: int, dim: int, sealed: int) -> dict[str, int]:
    """An independent count. 2 bytes for each of scale and zero."""
    heads = layers * groups
    channels = min(knob.value_group, dim)
    return {
        "keys": heads * sealed * dim * knob.key_bits // 8,
        "key_scales": heads * (sealed // knob.group) * dim * 4,
        "values": heads * sealed * dim * knob.value_bits // 8,
        "value_scales": heads * sealed * (dim // channels) * 4,
    }


def test_by_hand():
    """Two tokens to a group: channel 0 goes 0 -> 3, channel 1 stays 5; values have a range per token."""
    knob = Affine(key_bits=2, value_bits=2, group=8, value_group=8, residual=0, block=8)
    shape = kv_shape(batch=1, layers=1, heads=1, groups=1)
    tier = knob.open(shape)
    k = torch.full((1, 8, 8), 5.0)
    k[0, :, 0] = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])
    v = torch.arange(8.0).repeat(1, 8, 1)
    tier.seal(0, 0, k, v)
    keys, values, where = tier.materialise(0)
    assert tier.sealed == (8,)
    assert where.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert torch.equal(keys[0], k)
    # Range 0..7 in three steps of 7/3, rounded up in float16: codes 0 0 1 1 2 2 3 3.
    step = torch.tensor(7 / 3).half().float()
    torch.testing.assert_close(values[0, 0, 0], step * torch.tensor([0.0, 0, 1, 1, 2, 2, 3, 3]), atol=2e-3, rtol=0)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_a_step_elementwise(bits, dtype):
    knob = Affine(key_bits=bits, value_bits=bits, residual=0, block=32)
    shape = kv_shape(batch=1, groups=2, dim=64, dtype=dtype)
    feed = Feed(knob, shape, seeds=[5])
    feed.grow(0, 256)
    truth = text(5, shape, 256)
    for layer in range(2):
        k, v, _ = feed.held.materialise(layer)
        wanted_k, wanted_v = (x[layer].double() for x in truth)
        blocks = wanted_k.unflatten(1, (8, 32))
        key_range = (blocks.amax(2, keepdim=True) - blocks.amin(2, keepdim=True)).expand_as(blocks).flatten(1, 2)
        groups = wanted_v.unflatten(2, (2, 32))
        value_range = (groups.amax(3, keepdim=True) - groups.amin(3, keepdim=True)).expand_as(groups).flatten(2)
        for held, want, spread in ((k[0], wanted_k, key_range), (v[0], wanted_v, value_range)):
            # Outward rounding widens the range by at most one float16 step of zero and one of scale per level.
            slack = want.abs().max() * 2.0**-10
            bound = (spread * (1 + 2.0**-10) + slack) / (2**bits - 1) / 2
            assert ((held.double() - want).abs() <= bound + 1e-5).all()
            assert ((held.double() - want).abs() > spread / 2**bits / 4).any()


def test_an_outlier_channel_does_not_hurt_its_neighbours():
    """Per-channel keys: 100 times larger values in one channel leave the others' bits as they are."""
    knob = Affine(key_bits=2, group=32, residual=0, block=32)
    k, v = (torch.randn(1, 32, 16, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    wild = k.clone()
    wild[..., 3] *= 100
    held = []
    for keys in (k, wild):
        tier = knob.open(kv_shape(batch=1, layers=1, heads=1, groups=1, dim=16))
        tier.seal(0, 0, keys, v)
        held.append(tier.materialise(0)[0])
    rest = [c for c in range(16) if c != 3]
    assert torch.equal(held[0][..., rest], held[1][..., rest])


def test_due_keeps_the_newest_tokens_dense():
    knob = Affine(residual=128, block=64)
    assert [knob.due(n) for n in (0, 128, 191, 192, 255, 256, 1000)] == [0, 0, 0, 64, 64, 128, 832]
    for n in range(1, 3000):
        assert min(n, 128) <= n - knob.due(n) < 128 + 64


def test_a_residual_of_the_capacity_seals_nothing():
    knob = Affine(residual=4096)
    assert knob.due(4096) == 0


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("group", "value_group", "dim"), [(32, 32, 64), (64, 64, 128), (32, 1024, 64), (8, 16, 16)])
def test_bytes_are_those_of_the_shapes(bits, group, value_group, dim):
    knob = Affine(key_bits=bits, value_bits=bits, group=group, value_group=value_group, residual=0, block=group)
    feed = Feed(knob, kv_shape(batch=2, layers=2, groups=2, dim=dim), seeds=[1, 2])
    feed.grow(0, group * 6 + 3)
    feed.grow(1, group)
    assert resident_bytes(feed.held.storages()) == expected_bytes(knob, 2, 2, dim, group * 7)


@pytest.mark.parametrize(("bits", "want"), [(8, 9.0), (4, 5.0), (3, 4.0), (2, 3.0)])
def test_bits_per_value_of_the_sealed_tokens(bits, want):
    """2 bits in groups of 32 are 3: two float16 numbers to 32 values add one bit."""
    knob = Affine(key_bits=bits, value_bits=bits, residual=0, block=32)
    shape = kv_shape(batch=1, groups=2, dim=64)
    feed = Feed(knob, shape, seeds=[1])
    feed.grow(0, 1024)
    assert bits_per_value(sum(resident_bytes(feed.held.storages()).values()), shape, 1024) == want


@pytest.mark.parametrize(("bits", "want"), [(8, 9.17), (4, 5.26), (3, 4.28), (2, 3.30)])
def test_bits_per_value_of_a_session_at_8k(bits, want, record_property):
    """With the dense residual of 128 to 191 bfloat16 tokens, at 8192 + 63 tokens: the most it can be."""
    knob = Affine(key_bits=bits, value_bits=bits)
    shape = kv_shape(batch=1, layers=1, groups=2, dim=64, dtype=torch.bfloat16)
    feed = Feed(knob, shape, seeds=[1])
    feed.grow(0, 8192 + 63)
    open_bytes = 2 * (8192 + 63 - feed.held.sealed[0]) * 2 * 64 * 2
    got = bits_per_value(sum(resident_bytes(feed.held.storages()).values()) + open_bytes, shape, 8192 + 63)
    record_property("bits_per_value", round(got, 3))
    assert got == pytest.approx(want, abs=0.01)


def test_layout_of_pages_is_a_function_of_positions(monkeypatch):
    monkeypatch.setattr("steno.cache._paged.SCRATCH_BYTES", 4 * 2 * 2 * 8 * 96)
    knob = Affine(group=32, residual=0, block=32)
    once, steps = (Feed(knob, kv_shape(batch=1), seeds=[1]) for _ in range(2))
    once.grow(0, 320)
    for length in range(1, 321):
        steps.grow(0, length)
    assert digest(once.held) == digest(steps.held)
    assert once.held.state()[1]["tokens"] == [96, 96, 96, 32] * 2


def test_scratch_is_bounded():
    for groups, dim in ((8, 128), (1, 64), (32, 128)):
        tier = Affine().open(kv_shape(heads=groups, groups=groups, dim=dim))
        assert tier.page_tokens % 32 == 0
        assert tier.page_tokens * groups * dim * 2 * 4 <= 4 << 20


class Widest(TorchDispatchMode):
    """Remembers the bytes of the largest tensor that any operation made."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return out


def test_attention_never_unfolds_more_than_its_scratch(monkeypatch):
    monkeypatch.setattr("steno.cache._paged.SCRATCH_BYTES", 64 << 10)
    feed = Feed(Affine(residual=0, block=32), kv_shape(batch=1, layers=1, dim=32), seeds=[1])
    feed.grow(0, 8192)
    q, positions = feed.ask(4)
    with Widest() as widest:
        feed.held.attend(0, q, positions, 0.2)
    # The keys of a page are half of it; those of all 8192 tokens would be 2 MiB.
    assert 32 << 10 <= widest.bytes <= 64 << 10


def test_key_and_value_bits_are_apart():
    spread = {}
    for bits in ((4, 2), (2, 4)):
        feed = fed(Affine(key_bits=bits[0], value_bits=bits[1]), kv_shape(dim=32))
        k, v, _ = feed.held.materialise(0)
        sealed = feed.held.sealed[0]
        truth = text(1, feed.shape, sealed)
        spread[bits] = [float((held[0] - want[0]).square().mean()) for held, want in zip((k, v), truth, strict=True)]
    assert spread[4, 2][0] * 4 < spread[2, 4][0]
    assert spread[2, 4][1] * 4 < spread[4, 2][1]


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(KnobError, match=r"residual must be a multiple of group \(32\), got 100.*affine.residual=96"):
        Affine(residual=100)
    with pytest.raises(KnobError, match=r"block must be a multiple of group \(32\), got 8.*affine.block=32"):
        Affine(block=8)
    with pytest.raises(KnobError, match="key_bits must be one of 8, 4, 3, 2, got 5"):
        Affine(key_bits=5)
    with pytest.raises(KnobError, match=r"value_group must divide .* head width \(80\), got 32.*value_group=20"):
        Affine().open(kv_shape(dim=80))
    Affine(value_group=20).open(kv_shape(dim=80))


def test_numbers_that_are_not_finite_are_refused():
    tier = Affine().open(kv_shape(batch=1))
    k = torch.full((2, 64, 8), torch.nan)
    with pytest.raises(ModelError, match=r"Use cache\.dense"):
        tier.seal(0, 0, k, k)
