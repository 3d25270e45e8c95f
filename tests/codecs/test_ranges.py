"""The range coder: by hand, against the engine, and against constriction as an oracle for size."""

import math

import numpy as np
import pytest

from steno.codecs import _coder
from steno.codecs.ranges import RangeDecoder, RangeEncoder

ENCODERS = [RangeEncoder, _coder.RangeEncoder]
DECODERS = [RangeDecoder, _coder.RangeDecoder]


def random_message(seed: int, count: int = 2000):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        bits = int(rng.integers(1, 25))
        freq = int(rng.integers(1, 2**bits)) if rng.random() < 0.9 else 1
        yield int(rng.integers(0, 2**bits - freq + 1)), freq, bits


@pytest.mark.parametrize("encoder", ENCODERS)
def test_by_hand(encoder: type):
    # One certain symbol costs nothing; half the interval costs one bit: the upper half begins at 0x80.
    assert encoder().finish() == b""
    coder = encoder()
    coder.encode(1, 1, 1)
    assert coder.finish() == b"\x80"


@pytest.mark.parametrize("seed", range(8))
def test_reference_and_engine_write_and_read_the_same(seed: int):
    message = list(random_message(seed))
    coders = [encoder() for encoder in ENCODERS]
    for low, freq, bits in message:
        for coder in coders:
            coder.encode(low, freq, bits)
    ours, engine = (coder.finish() for coder in coders)
    assert ours == engine
    for decoder in [make(ours) for make in DECODERS]:
        for low, freq, bits in message:
            assert low <= decoder.target(bits) < low + freq
            decoder.consume(low, freq, bits)
        assert decoder.overrun <= 4


def test_carries_run_through_long_rows_of_ff():
    # Almost the top of the interval again and again: every byte stays pending until the very end decides.
    coders = [encoder() for encoder in ENCODERS]
    for coder in coders:
        for _ in range(300):
            coder.encode(2**16 - 2, 1, 16)
        coder.encode(2**24 - 1, 1, 24)
    assert coders[0].finish() == coders[1].finish()


def test_as_small_as_constriction():
    constriction = pytest.importorskip("constriction")
    rng = np.random.default_rng(5)
    for vocab in (3, 40, 256):
        weights = rng.exponential(size=vocab) ** 3 + 1e-4
        p = weights / weights.sum()
        symbols = rng.choice(vocab, 5000, p=p)
        freq = np.maximum((p * 2**16).astype(np.int64), 1)
        freq[freq.argmax()] += 2**16 - freq.sum()
        low = np.concatenate([[0], np.cumsum(freq)[:-1]])
        ours = RangeEncoder()
        for s in symbols:
            ours.encode(int(low[s]), int(freq[s]), 16)
        oracle = constriction.stream.queue.RangeEncoder()
        model = constriction.stream.model.Categorical(freq / 2**16, perfect=False)
        oracle.encode(symbols.astype(np.int32), model)
        ideal = -sum(math.log2(freq[s] / 2**16) for s in symbols)
        bits = 8 * len(ours.finish())
        assert abs(bits - oracle.num_bits()) <= 0.001 * oracle.num_bits() + 64
        assert bits <= 1.001 * ideal + 16


@pytest.mark.parametrize("decoder", DECODERS)
def test_reading_past_the_end_is_counted(decoder: type):
    coder = decoder(b"")
    for _ in range(10):
        coder.consume(0, 1, 8)
    assert coder.overrun == 10


def test_the_engine_refuses_intervals_that_are_none():
    for low, freq, bits in [(0, 0, 8), (200, 57, 8), (0, 1, 0), (0, 1, 25)]:
        with pytest.raises(ValueError, match="low \\+ freq"):
            _coder.RangeEncoder().encode(low, freq, bits)
