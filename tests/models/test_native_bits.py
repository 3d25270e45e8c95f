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

from steno.cache.affine import Affine
from steno.cache.half import Half
from steno.cache.window import Window
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


CACHES = {
    "int8": Affine(key_bits=8, value_bits=8, group=32, residual=64, block=32),
    "int4-2": Affine(key_bits=4, value_bits=2, group=32, residual=0, block=64),
    "int3-odd": Affine(key_bits=3, value_bits=3, group=24, value_group=8, residual=24, block=24),
    "int2-4": Affine(key_bits=2, value_bits=4, group=8, residual=8, block=8),
    "half": Half(block=20),
    "window": Window(sinks=5, window=300, block=48),
    "short-window": Window(sinks=3, window=29, block=1),
}


@pytest.fixture(scope="module", params=[(n, f) for n in ("llama-tied-biased", "mistral") for f in CACHES], ids="-".join)
def kept(request, folders):
    """(model, form, logits [T, V] of TEXT one token at a time)."""
    name, form = request.param
    model = native.load(folders[name], weights="int8", threads=1)
    return model, CACHES[form], decode(model.open(1, 600, CACHES[form]), TEXT, lambda: 1)


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


def within(session, most):
    """A width that stays within the first row's room."""
    return lambda: min(session.room()[0], most())


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("width", [2, 7, 32, 256, 0], ids=lambda w: str(w) if w else "mixed")
def test_forms_at_any_width_and_threads(kept, width, threads):
    model, form, want = kept
    if threads > 1:
        model = native.load(model.path, weights=model.weights, threads=threads)
    rng = np.random.default_rng(threads)
    session = model.open(1, 600, form)
    same(decode(session, TEXT, within(session, lambda: width or int(rng.integers(1, 40)))), want)


def test_forms_change_something(folders, kept):
    model, form, want = kept
    dense = decode(model.open(1, 600), TEXT, lambda: 16)
    if any(model.shape.windows) and form in (CACHES["int8"], CACHES["window"]):
        same(dense, want)  # what these forms touch lies beyond the model's own window
    else:
        assert not np.array_equal(dense[-1], want[-1])


def test_forms_in_any_chunking_of_the_prompt(kept):
    model, form, want = kept
    for cut in (1, 15, 63, 64, 65, 257, 530):
        session = model.open(1, 600, form)
        same(session.prefill([TEXT[:cut]], last=True)[0], want[cut - 1])
        session.prefill([TEXT[cut : cut + 20]])
        most = session.room()[0]
        at = cut + 20
        if at < 550:
            same(session.forward(forest([chain(TEXT[at : at + most][:8])])).logits[0], want[at : at + min(most, 8)])


def test_forms_in_ragged_batches_of_forks(kept):
    """Rows at different lengths, rows that part from one another, and drafts that are thrown away."""
    model, form, want = kept
    rng = np.random.default_rng(1)
    session = model.open(2, 600, form)
    session.prefill([TEXT[:200], TEXT[:90]])
    session = session.fork([0, 1, 0, 1])
    at = list(session.lengths)
    for _ in range(40):
        widths = [min(int(rng.integers(0, 12)), most, 560 - n) for most, n in zip(session.room(), at, strict=True)]
        widths[0] = max(widths[0], 1)
        wrong = [int(rng.integers(0, w + 1)) for w in widths]
        rows = [[*TEXT[n : n + w - x], *ids(x, 3)] for n, w, x in zip(at, widths, wrong, strict=True)]
        step = session.forward(forest([chain(row) for row in rows]))
        for b, (n, w, x) in enumerate(zip(at, widths, wrong, strict=True)):
            same(step.logits[b, : w - x], want[n : n + w - x])
        session.commit([list(range(w - x)) for w, x in zip(widths, wrong, strict=True)])
        at = [n + w - x for n, w, x in zip(at, widths, wrong, strict=True)]


def test_forms_under_trees(kept):
    """The true text hidden in a random tree, which never reaches past the room."""
    model, form, want = kept
    rng = np.random.default_rng(2)
    session = model.open(1, 600, form)
    at = 0
    while at < 330:
        most = session.room()[0]
        tokens, parents, depth, path = [], [], [], []
        for _ in range(24):
            if len(path) < most and rng.random() < 0.4:
                up, token = (path[-1] if path else -1), TEXT[at + len(path)]
                path.append(len(tokens))
            else:
                up, token = (int(rng.integers(-1, len(tokens))) if tokens else -1), int(rng.integers(0, 301))
            if up >= 0 and depth[up] + 1 >= most:
                up = -1
            tokens.append(token)
            parents.append(up)
            depth.append(depth[up] + 1 if up >= 0 else 0)
        step = session.forward(forest([(tokens, parents)]))
        same(step.logits[0, path], want[at : at + len(path)])
        keep = int(rng.integers(0, len(path) + 1))
        session.commit([path[:keep]])
        at += keep


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
