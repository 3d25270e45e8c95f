"""A file is the same file on every instruction set and any number of threads, and opens on all of them."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from steno.models import _engine

SRC = Path(__file__).resolve().parents[2] / "src"
SAMPLE = (SRC / "steno" / "core" / "session.py").read_bytes()[:3000]
ISAS = [isa for isa in _engine.instruction_sets() if isa != "avx512"]

ZIP = """
import io, sys
from steno.cli._zip import open_neural
from steno.codecs import identity
from steno.codecs.container import Entry
from steno.codecs.kinds import Kinds
from steno.codecs.writer import Writer
neural, _ = open_neural("nib", 0)
writer = Writer(sys.stdout.buffer, Kinds(neural), identity.header(neural))
writer.add("x", Entry.FILE, io.BytesIO(sys.stdin.buffer.read()))
writer.close()
"""
UNZIP = """
import io, sys
from steno.cli._zip import open_neural
from steno.codecs import identity
from steno.codecs.kinds import Kinds
from steno.codecs.reader import read_header, walk
neural, _ = open_neural("nib", 0)
source = io.BytesIO(sys.stdin.buffer.read())
identity.check(read_header(source), neural)
for _, raw in walk(source, Kinds(neural)):
    sys.stdout.buffer.write(raw)
"""


def run(code: str, data: bytes, isa: str, threads: int) -> bytes:
    changes = {"STENO_ISA": isa, "STENO_THREADS": str(threads), "PYTHONPATH": str(SRC)}
    done = subprocess.run(
        [sys.executable, "-c", code], input=data, capture_output=True, env={**os.environ, **changes}, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture(scope="module")
def packed() -> bytes:
    return run(ZIP, SAMPLE, ISAS[0], 2)


def test_the_best_path_writes_what_the_scalar_path_reads(packed: bytes):
    assert len(packed) < 0.45 * len(SAMPLE)
    assert run(UNZIP, packed, "scalar", 1) == SAMPLE


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_every_path_writes_the_same_file(packed: bytes, isa: str):
    assert hashlib.sha256(run(ZIP, SAMPLE, isa, 1)).digest() == hashlib.sha256(packed).digest()
