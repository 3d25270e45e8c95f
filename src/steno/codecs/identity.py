"""What a file says of the model it was written with, and the self-test that this machine computes the same numbers."""

import hashlib

import numpy as np

from .base import WrongModel
from .container import Header
from .frequencies import frequencies, num_bits
from .neural import Neural

PROBE = 64
"""Symbols of the self-test."""


def golden(neural: Neural) -> str:
    """SHA-256 of the frequency tables of a fixed text: equal wherever decoding is exact."""
    vocab = neural.predictor.vocab
    ids = np.array([neural.predictor.start, *((7919 * i * i + 31 * i) % vocab for i in range(1, PROBE))], np.int32)
    streams, at, digest = neural.predictor.open(1), 0, hashlib.sha256()
    while at < PROBE:
        # Uneven passes: a width must not matter either.
        width = min(streams.room(), PROBE - at, 1 + at % 23)
        scores = streams.ahead(np.ascontiguousarray(ids[None, at : at + width]))
        digest.update(frequencies(scores[0], num_bits(vocab)).astype("<u4").tobytes())
        streams.keep([width])
        at += width
    return digest.hexdigest()


def header(neural: Neural | None) -> Header:
    """The header of a file written with this model."""
    if neural is None:
        return Header(model=bytes(16), spelling=bytes(8), golden=bytes(8), name="")
    return Header(
        model=bytes.fromhex(neural.predictor.fingerprint)[:16], spelling=_spelling(neural),
        golden=bytes.fromhex(golden(neural))[:8], name=neural.predictor.name[:200],
    )  # fmt: skip


def check(written: Header, neural: Neural) -> None:
    """Raises WrongModel, with the reason, where `neural` would not decode what was written."""
    here = header(neural)
    if here.model != written.model:
        raise WrongModel(
            f"the file was written with the model {written.name!r} (id {written.model.hex()}), and {here.name!r} is "
            f"{here.model.hex()}. Name the right one with --model."
        )
    if here.spelling != written.spelling:
        raise WrongModel(
            f"the file was written with another tokenizer of {written.name!r}. Use the folder it was written with."
        )
    if here.golden != written.golden:
        raise WrongModel(
            f"this machine computes other numbers for {written.name!r} than the one that wrote the file, so it would "
            "decode garbage. Unset STENO_ISA, reinstall steno, and report it with the output of: steno --version"
        )


def _spelling(neural: Neural) -> bytes:
    digest = hashlib.sha256()
    for i in range(neural.predictor.vocab):
        try:
            word = neural.spelling.token_bytes(i)
        except Exception:
            word = b""
        digest.update(len(word).to_bytes(4, "little") + word)
    return digest.digest()[:8]
