"""Chunks through a predictor: any bytes, any drafts, any lanes; the same bytes back and the same code."""

import numpy as np
import numpy.typing as npt
import pytest
from codec_tools import TEXT, ByBytes, Rows, neural

from steno.codecs.base import Corrupt
from steno.codecs.neural import Neural
from steno.core.errors import DataError

SAMPLE = TEXT[:1500]


class Hostile:
    """Drafts that are wrong on purpose: noise, the right thing shifted, ids that do not exist, nothing at all."""

    def __init__(self, lanes: int, kind: str) -> None:
        self.lanes, self.kind, self.rng = lanes, kind, np.random.default_rng(3)

    def draft(self, width: int, /) -> npt.NDArray[np.int32]:
        shape = self.lanes, width
        if self.kind == "noise":
            return self.rng.integers(0, 258, shape).astype(np.int32)
        if self.kind == "impossible":
            return self.rng.choice([-5, -1, 258, 2**31 - 1], shape).astype(np.int32)
        if self.kind == "spaces":
            return np.full(shape, 32, np.int32)
        return np.full(shape, -1, np.int32)


@pytest.mark.parametrize("lanes", [1, 2, 3, 7])
@pytest.mark.parametrize("kind", ["noise", "impossible", "spaces", "none"])
@pytest.mark.parametrize("most", [0, 1, 5, 32])
def test_hostile_drafts_change_nothing(lanes: int, kind: str, most: int):
    model = neural(limit=200)
    code = model.encode(list(SAMPLE), lanes, True)
    raw, passes = model.decode(code, len(SAMPLE), lanes, True, draft=lambda _: Hostile(lanes, kind), most=most)
    assert raw == SAMPLE
    assert passes.passes <= passes.plain == -(-len(SAMPLE) // lanes)
    assert passes.plain - passes.passes == passes.right <= passes.drafted


@pytest.mark.parametrize("adapt", [True, False])
def test_own_drafts_save_passes_on_text_that_repeats(adapt: bool):
    data = SAMPLE[:300] * 5
    model = neural()
    code = model.encode(list(data), 1, adapt)
    for most in (0, 1, 8, 32):
        raw, passes = model.decode(code, len(data), 1, adapt, most=most)
        assert raw == data
        if most == 0:
            assert passes.passes == passes.plain == len(data)
        elif most == 8:
            assert passes.passes < 0.6 * passes.plain


def test_right_drafts_are_all_taken():
    class Oracle:
        def __init__(self) -> None:
            self.at = 0

        def draft(self, width: int, /) -> npt.NDArray[np.int32]:
            # Asked once per pass; the number decoded so far is that of all passes before, all right.
            line = list(SAMPLE[self.at : self.at + width])
            self.at += width + 1
            return np.array([line + [-1] * (width - len(line))], np.int32)

    model = neural(limit=10_000)
    code = model.encode(list(SAMPLE), 1, True)
    raw, passes = model.decode(code, len(SAMPLE), 1, True, draft=lambda _: Oracle(), most=16)
    assert raw == SAMPLE
    assert passes.right == passes.drafted
    assert passes.passes < len(SAMPLE) / 8


@pytest.mark.parametrize("length", [0, 1, 2, 3, 5, 16, 17])
@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_every_length_fits_every_number_of_lanes(length: int, lanes: int):
    model = neural(limit=8)
    data = bytes(range(200, 200 + length))
    code = model.encode(list(data), lanes, True)
    assert model.decode(code, length, lanes, True)[0] == data


def test_the_code_does_not_depend_on_how_passes_are_cut():
    codes = {neural(limit=limit).encode(list(SAMPLE), 3, True) for limit in (1, 7, 32, 1000)}
    assert len(codes) == 1


def test_a_spelling_that_loses_something_is_not_used():
    class Lossy(ByBytes):
        def decode_bytes(self, ids: list[int]) -> bytes:
            return super().decode_bytes(ids).upper()

    class Failing(ByBytes):
        def encode_bytes(self, data: bytes) -> list[int]:
            raise DataError("no")

    assert Neural.of(Rows(), Lossy()).symbols(b"abc") is None
    assert Neural.of(Rows(), Failing()).symbols(b"abc") is None
    assert neural().symbols(b"abc") == [97, 98, 99]


def test_a_code_that_ends_early_is_corrupt():
    model = neural()
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, 400).astype(np.uint8).tobytes()
    code = model.encode(list(data), 1, True)
    with pytest.raises(Corrupt, match="ends before its symbols"):
        model.decode(code[:100], len(data), 1, True)
