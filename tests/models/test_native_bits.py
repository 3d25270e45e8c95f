"""Equal weights and ids, equal bits: whatever the width, tree, batch, threads and instruction set.

What is varied is data: one entry more in a list below is one case more.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import native_tiny
import numpy as np
import pytest
from native_tiny import chain, decode, forest, ids

from steno.models import _engine, native
from steno.models._fill import FORMS

pytest.importorskip("torch")

NAMES = ("llama", "mistral", "qwen3", "llama-tied-biased", "qwen2-window")
SUBJECTS = [*(("llama", form) for form in FORMS), *((name, form) for name in NAMES[1:] for form in ("fp32", "int8"))]
WIDTHS = (*range(1, 33), 100, 128, 256)
THREADS = (1, 2, 3, 4)
BATCHES = (1, 2, 3, 5, 8)
# Past two chunks of 256 key slots, the unit in which attention is summed.
TEXT = ids(560)
FORK = 490
"""Where cases that need no more than a crossing of the second chunk begin."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("bits")
    for name in NAMES:
        native_tiny.make(name, root / name)
    return {name: root / name for name in NAMES}


@pytest.fixture(scope="module", params=SUBJECTS, ids="-".join)
def subject(request, folders):
    """(model, logits [T, V] of TEXT one token at a time)."""
    name, weights = request.param
    model = native.load(folders[name], weights=weights, threads=1)
    return model, decode(model.open(1, 600), TEXT, lambda: 1)


@pytest.fixture(scope="module")
def begun(subject):
    """A session that holds TEXT[:FORK]."""
    session = subject[0].open(1, 600)
    session.prefill([TEXT[:FORK]])
    return session


@pytest.fixture(autouse=True)
def strict(monkeypatch):
    monkeypatch.setenv("STENO_POISON", "1")
    _engine.insist_on_threads(True)
    yield
    _engine.insist_on_threads(False)


def same(got, want):
    assert np.isfinite(want).all()
    np.testing.assert_array_equal(np.asarray(got).view(np.uint32), np.asarray(want).view(np.uint32))


@pytest.mark.parametrize("width", WIDTHS)
def test_any_width(subject, begun, width):
    same(decode(begun.fork([0]), TEXT[FORK:], lambda: width), subject[1][FORK:])


@pytest.mark.parametrize("width", [7, 16, 31, 256])
def test_any_width_from_the_first_token(subject, width):
    model, want = subject
    same(decode(model.open(1, 600), TEXT, lambda: width), want)


@pytest.mark.parametrize("threads", THREADS)
def test_any_threads_and_mixed_widths(subject, threads):
    model, want = subject
    other = native.load(model.path, weights=model.weights, threads=threads)
    rng = np.random.default_rng(threads)
    same(decode(other.open(1, 600), TEXT, lambda: int(rng.integers(1, 33))), want)


def test_prefill_is_the_same_arithmetic(subject):
    model, want = subject
    for cut in (1, 15, 16, 255, 256, 257, 530):
        session = model.open(1, 600)
        same(session.prefill([TEXT[:cut]], last=True)[0], want[cut - 1])
        same(session.forward(forest([chain(TEXT[cut : cut + 8])])).logits[0], want[cut : cut + 8])


@pytest.mark.parametrize("batch", BATCHES)
def test_any_batch(subject, batch):
    """Rows of different lengths in one session, each in its own pieces, some idle, all padded to the widest."""
    model, want = subject
    model = native.load(model.path, weights=model.weights, threads=1 + batch % len(THREADS))
    rng = np.random.default_rng(batch)
    at = [int(n) for n in rng.integers(0, 250, batch)]
    session = model.open(batch, 600)
    session.prefill([TEXT[:n] for n in at])
    for _ in range(12):
        widths = [int(n) for n in rng.integers(0, 12, batch)]
        widths[0] = max(widths[0], 1)
        step = session.forward(forest([chain(TEXT[n : n + w]) for n, w in zip(at, widths, strict=True)]))
        keep = [int(rng.integers(0, w + 1)) for w in widths]
        for b, (n, w) in enumerate(zip(at, widths, strict=True)):
            same(step.logits[b, :w], want[n : n + w])
        session.commit([list(range(k)) for k in keep])
        at = [n + k for n, k in zip(at, keep, strict=True)]


def test_trees_are_chains(subject):
    """The true text hidden in a random tree gets the bits of the text alone, whatever grows beside it."""
    model, want = subject
    rng = np.random.default_rng(0)
    session = model.open(1, 600)
    at = 0
    while at < 320:
        truth, tokens, parents, path = 9, [], [], []
        while len(path) < truth or len(tokens) < 40:
            if len(path) < truth and rng.random() < 0.4:
                parents.append(path[-1] if path else -1)
                tokens.append(TEXT[at + len(path)])
                path.append(len(tokens) - 1)
            else:
                parents.append(int(rng.integers(-1, len(tokens))) if tokens else -1)
                tokens.append(int(rng.integers(0, 301)))
        step = session.forward(forest([(tokens, parents)]))
        same(step.logits[0, path], want[at : at + truth])
        keep = int(rng.integers(1, truth + 1))
        session.commit([path[:keep]])
        at += keep
        if rng.random() < 0.3:
            back = int(rng.integers(0, min(at, 40)))
            session.crop([at - back])
            at -= back


def test_forks_share_until_they_write(subject):
    model, want = subject
    session = model.open(1, 600)
    session.prefill([TEXT[:300]])
    twins = session.fork([0, 0, 0])
    twins.forward(forest([chain(ids(20, 5)), chain(TEXT[300:305]), chain(ids(3, 6))]))
    twins.commit([list(range(20)), list(range(5)), []])
    twins.crop([280, 305, 300])
    same(session.forward(forest([chain(TEXT[300:310])])).logits[0], want[300:310])
    step = twins.forward(forest([chain(TEXT[280:290]), chain(TEXT[305:315]), chain(TEXT[300:310])]))
    for b, n in enumerate((280, 305, 300)):
        same(step.logits[b], want[n : n + 10])


def test_sessions_in_parallel_threads(subject):
    """Sessions of one model used from several Python threads at once."""
    model, want = subject
    shared = native.load(model.path, weights=model.weights, threads=2)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda w: decode(shared.open(1, 600), TEXT[:200], lambda: w), (1, 5, 8, 32)):
            same(got, want[:200])


@pytest.mark.parametrize("what", ["digest", pytest.param("written", marks=pytest.mark.slow)])
def test_any_instruction_set(folders, what):
    """One hash of forwards, or of what drafters and acceptors write, whatever the instruction set and threads."""
    script = Path(native_tiny.__file__)
    hashes = {}
    for isa in _engine.instruction_sets():
        for threads in THREADS if isa != "scalar" else (2,):
            run = subprocess.run(
                [sys.executable, str(script), what, str(threads), *map(str, folders.values())],
                env={**os.environ, "STENO_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)},
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert run.returncode == 0, run.stderr
            hashes[isa, threads] = run.stdout.strip()
    assert "scalar" in _engine.instruction_sets()
    assert len(set(hashes.values())) == 1, hashes
    assert len(hashes[_engine.instruction_sets()[0], 1]) == 64


def test_float_settings_of_the_caller_do_not_reach_the_engine(subject):
    import torch

    model, want = subject
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        same(decode(model.open(1, 600), TEXT[:20], lambda: 7), want[:20])
    finally:
        torch.set_flush_denormal(False)
