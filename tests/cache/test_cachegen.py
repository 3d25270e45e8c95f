"""cache.cachegen: anchors and differences; streams that come back bit for bit, at any level, cut anywhere."""

from math import log2

import numpy as np
import pytest
import torch
from tier_contract import Feed, digest, kv_shape, text

from steno.cache._wire import decode_codes, encode_codes
from steno.cache.cachegen import CacheGen, in_time, receive, send
from steno.core.errors import DataError

SMALL = {"residual": 0, "block": 32, "group": 8}


def fed(knob: CacheGen, count: int = 96, **shape) -> Feed:
    feed = Feed(knob, kv_shape(batch=1, **shape), seeds=[1])
    feed.grow(0, count)
    return feed


def test_by_hand():
    """The anchor (0, 8) is exact in 8 bits; of the differences (1, -3) in 3 bits the larger is exact: steps of 1."""
    tier = CacheGen(key_bits=(3,), value_bits=(2,), **SMALL).open(
        kv_shape(batch=1, layers=1, heads=1, groups=1, dim=2, rope=None)
    )
    k = torch.tensor([[0.0, 8], *[[1.2, 5]] * 7] * 4)[None]
    tier.seal(0, 0, k, k)
    keys, values, _ = tier.materialise(0)
    want = torch.tensor([[0.0, 8], *[[1, 5]] * 7] * 4)
    torch.testing.assert_close(keys[0, 0], want, atol=0.05, rtol=0)
    # Two bits of values: -1, 0 or 1 times 3.
    want = torch.tensor([[0.0, 8], *[[0, 5]] * 7] * 4)
    torch.testing.assert_close(values[0, 0], want, atol=0.05, rtol=0)


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_no_number_is_further_off_than_half_a_step(bits):
    feed = fed(CacheGen(key_bits=(bits,), value_bits=(bits,), **SMALL), rope=None)
    for layer in range(2):
        held = feed.held.materialise(layer)[:2]
        for side, x, truth in zip(("key_", "value_"), held, text(1, feed.shape, 96), strict=True):
            apart = (x[0] - truth[layer]).abs().unflatten(1, (-1, 8))
            scales = torch.cat([part[side + "scales"] for part in feed.held.blocks(0, layer)], 1)
            steps = scales.float().unflatten(2, (-1, 7)).flatten(1, 2)[..., None]
            assert (apart[:, :, 1:] <= steps * 0.51 + 0.01).all()


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_codes_come_back(bits, level):
    most = 2 ** (bits - 1) - 1
    rng = np.random.default_rng(0)
    codes = np.clip(np.rint(rng.normal(0, 1 + most / 4, (40, 9))), -most, most).astype(np.int64)
    back = decode_codes(encode_codes(codes, bits, level), codes.shape, bits, level)
    assert np.abs(back - codes).max() <= (1 << level >> 1)
    if level == 0:
        assert (back == codes).all()


def test_bytes_approach_the_entropy():
    """4,096 codes of one law: within 3 % of the entropy of their own histogram, which nobody has to send."""
    codes = np.rint(np.random.default_rng(0).normal(0, 1.5, (64, 64))).astype(np.int64).clip(-7, 7)
    share = np.unique(codes, return_counts=True)[1] / codes.size
    entropy = -sum(p * log2(p) for p in share) * codes.size / 8
    assert len(encode_codes(codes, 4, 0)) < 1.03 * entropy < 0.7 * codes.size / 2 * 1.03


def test_a_stream_brings_the_cache_over_bit_for_bit():
    knob = CacheGen(**SMALL)
    feed = fed(knob)
    data = b"".join(send(knob, feed.held, 0, model="m"))
    for size in (1, 7, len(data)):
        pieces = (data[i : i + size] for i in range(0, len(data), size))
        got = receive(knob, feed.shape, pieces, model="m")
        assert got.sealed == (96,)
        assert digest(got) == digest(feed.held)
    # 96 tokens of two layers, two heads and eight channels: fewer bits on the wire than in memory, and than bfloat16.
    resident = sum(t.numel() * t.element_size() for found in feed.held.storages().values() for t in found)
    assert len(data) < resident < 96 * 2 * 2 * 8 * 2 * 2


def test_a_coarser_level_has_fewer_bytes_and_more_error():
    knob = CacheGen(key_bits=(4,), value_bits=(4,), **SMALL)
    feed = fed(knob)
    sizes, errors = [], []
    for level in range(3):
        data = list(send(knob, feed.held, 0, lambda found, level=level: level))
        sizes.append(sum(map(len, data)))
        k = receive(knob, feed.shape, data).materialise(1)[0]
        errors.append(float((k - feed.held.materialise(1)[0]).abs().mean()))
    assert sizes[0] > sizes[1] > sizes[2]
    assert 0 == errors[0] < errors[1] < errors[2]


def test_chunks_stand_alone_and_go_by_the_time_there_is():
    """A chunk is the same whatever came before it, and a slow line gets coarser ones."""
    knob = CacheGen(**SMALL)
    feed = fed(knob)
    _, first, second, _ = send(knob, feed.held, 0)
    other = Feed(knob, feed.shape, seeds=[9])
    other.grow(0, 32)
    for layer in range(2):
        other.held.append(0, layer, list(feed.held.blocks(0, layer))[1])
    assert list(send(knob, other.held, 0))[2] == second
    asked = []

    def slow(sizes):
        asked.append(sizes)
        return in_time(1.0, sizes[1])(sizes)

    assert len(list(send(knob, feed.held, 0, slow))[1]) == asked[0][1] < len(first)
    assert in_time(1.0, 1.0)([30, 20, 10]) == 2


def test_streams_of_another_model_and_damaged_ones_are_refused():
    knob = CacheGen(**SMALL)
    feed = fed(knob)
    data = b"".join(send(knob, feed.held, 0, model="m"))
    with pytest.raises(DataError, match=r"does not hold the cache asked for .*but .*\"m\""):
        receive(knob, feed.shape, [data], model="n")
    with pytest.raises(DataError, match="does not hold the cache asked for"):
        receive(CacheGen(**{**SMALL, "group": 16}), feed.shape, [data], model="m")
    for bad, words in (
        (data[:-1], "ends within a chunk, behind token 64"),
        (data[:-5] + b"\xff" + data[-4:], "chunk behind token 64 is damaged"),
        (b"", "ends within a chunk, behind token 0"),
    ):
        with pytest.raises(DataError, match=words):
            receive(knob, feed.shape, [bad], model="m")
