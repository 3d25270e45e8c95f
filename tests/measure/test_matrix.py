"""Every drafter x every acceptor x {table, hf pinned, native}, at batches of 1, 3 and 8 ragged rows, passes `verify`.

Drafters, acceptors and cache forms come from the index, so a new one is tested unasked. The table model runs them all
in the fast tier; the other backends are slow.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from steno.core import Plan, make_knob, methods
from steno.core.index import scan
from steno.measure import Status
from steno.measure.conform import verify
from steno.models.table import TableModel

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
sys.path.insert(0, str(Path(__file__).parent))

import sabotage

INDEX = scan()
# Those with trained parts need an adapter of the model at hand: tests/decode/test_trained.py puts them through the kit.
DRAFTERS = [n for n, entry in INDEX.items() if n.startswith("decode.draft.") and "adapter" not in entry["fields"]]
ACCEPTORS = [name for name in INDEX if name.startswith("decode.accept.")]
SHAPERS = [name for name in INDEX if name.startswith("decode.shape.") and name != "decode.shape.temperature"]
FORMS = {
    "cache.affine": {"key_bits": 4, "value_bits": 2, "group": 8, "residual": 8, "block": 8},
    "cache.half": {"block": 8},
    "cache.window": {"sinks": 2, "window": 12, "block": 4},
}
"""Settings that change the form within a short text; other forms run with their defaults."""

LOOPING = TableModel(vocab=40, seed=5, order=2)


def plan_of(*names):
    """A plan of knobs by name; acceptors that draw get a temperature."""
    knobs = [make_knob(name, FORMS.get(name, {})) for name in names]
    if any(name in ("decode.accept.gumbel", "decode.accept.residual") for name in names):
        knobs.append(make_knob("decode.shape.temperature", {"temperature": 0.9}))
    return Plan(tuple(knobs))


def assert_holds(model, plan, **settings):
    verdict = verify(model, plan, **settings)
    assert verdict.passed, [(c.name, c.detail) for c in verdict.failed]
    states = {c.name: c.status for c in verdict.checks}
    for batch in (1, 3, 8):
        assert states[f"ids.none.{batch}"] is Status.PASS
        if verdict.plan and plan.find("decode.accept.residual") == ():
            assert states[f"ids.own.{batch}"] is states[f"ids.chain.{batch}"] is Status.PASS
    return verdict


def test_the_index_is_not_empty():
    assert {"decode.draft.lookup"} <= set(DRAFTERS)
    assert {"decode.accept.greedy", "decode.accept.gumbel", "decode.accept.residual"} <= set(ACCEPTORS)
    assert set(DRAFTERS) <= set(methods()) or "decode.draft.lookup" in INDEX


@pytest.mark.parametrize("acceptor", ACCEPTORS)
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_on_the_table_backend(drafter, acceptor):
    # The law of an acceptor does not depend on the drafter: the slow tier repeats it for each.
    assert_holds(LOOPING, plan_of(drafter, acceptor), tokens=8)


@pytest.mark.parametrize("shaper", SHAPERS)
def test_shapers_on_the_table_backend(shaper):
    assert_holds(LOOPING, plan_of("decode.draft.lookup", "decode.accept.gumbel", shaper), tokens=8)


@pytest.fixture(scope="module")
def pinned(tmp_path_factory):
    """A tiny Llama on the hf backend in fixed shapes."""
    pytest.importorskip("torch")
    import tiny

    from steno.models import ModelSpec, load

    folder = tiny.make("llama", tmp_path_factory.mktemp("pinned") / "llama")
    return load(ModelSpec(source=str(folder), backend="hf", pinned=True, width=12, threads=1))


@pytest.fixture(scope="module", params=["int8", "fp32"])
def native(request, tmp_path_factory):
    """A tiny Llama on the engine."""
    if find_spec("steno.models._engine") is None:
        pytest.skip("the native engine is not built here (run: make setup)")
    pytest.importorskip("torch")
    import native_tiny

    from steno.models import native

    folder = tmp_path_factory.mktemp("native") / "llama"
    native_tiny.make("llama", folder)
    return native.load(folder, weights=request.param, threads=1)


@pytest.mark.slow
@pytest.mark.parametrize("acceptor", ACCEPTORS)
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_on_the_hf_backend_pinned(pinned, drafter, acceptor):
    verdict = assert_holds(pinned, plan_of(drafter, acceptor), tokens=8)
    numbers = {c.name: c.numbers for c in verdict.checks}
    assert numbers["bits.chain"]["bits_promised"] == 1
    assert numbers["bits.chain"]["max_difference"] == 0


PINNED = """
import sys
import torch
from steno.core import Plan, make_knob
from steno.measure.conform import verify
from steno.models import ModelSpec, load
model = load(ModelSpec(source=sys.argv[1], backend="hf", pinned=True, width=12, threads=1))
verdict = verify(model, Plan((make_knob("decode.draft.suffix", {}),)), rows=(1, 3), tokens=8)
promised = {c.name: c.numbers for c in verdict.checks}["bits.own"]["bits_promised"]
print(torch.backends.cpu.get_cpu_capability(), promised, [(c.name, c.detail) for c in verdict.failed])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trap", "capability"),
    [
        ({"ATEN_CPU_CAPABILITY": "default"}, "DEFAULT"),
        ({"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}, "AVX2"),
    ],
    ids=["default", "avx2"],
)
def test_hf_pinned_where_torch_takes_the_processor_for_an_older_one(tmp_path, trap, capability):
    """Bits are promised within a process; they hold there too, whatever kernels torch has chosen for it."""
    torch = pytest.importorskip("torch")
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("torch has no newer kernels than those on this processor")
    import tiny

    folder = tiny.make("llama", tmp_path / "llama")
    run = subprocess.run(
        [sys.executable, "-c", PINNED, str(folder)],
        env={**os.environ, **trap}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[-2] == f"{capability} 1.0 []"


@pytest.mark.slow
@pytest.mark.parametrize("acceptor", ACCEPTORS)
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_on_the_native_backend(native, drafter, acceptor):
    verdict = assert_holds(native, plan_of(drafter, acceptor), tokens=8)
    numbers = {c.name: c.numbers for c in verdict.checks}
    for name in ("bits.own", "bits.chain", "bits.tree", "bits.view"):
        assert (numbers[name]["bits_promised"], numbers[name]["max_difference"]) == (1, 0)


@pytest.mark.slow
@pytest.mark.parametrize("acceptor", ACCEPTORS)
def test_one_wrong_bit_on_the_native_backend_fails(native, monkeypatch, acceptor):
    """A rounding that differs in wide forwards by the last bit of one logit is found under every acceptor."""
    sabotage.last_bit(type(native.open(1, 8)), 2)(monkeypatch)
    verdict = verify(native, plan_of("decode.draft.suffix", acceptor), tokens=8)
    assert {"bits.chain", "bits.tree", "bits.view"} <= {c.name for c in verdict.failed}


@pytest.mark.slow
@pytest.mark.parametrize("acceptor", [a for a in ACCEPTORS if a != "decode.accept.residual"])
@pytest.mark.parametrize("form", [name for name in INDEX if name.startswith("cache.")])
def test_cache_forms_under_drafts(pinned, form, acceptor):
    """Compressed and drafted gives what compressed and plain gives, id for id."""
    verdict = assert_holds(pinned, plan_of("decode.draft.lookup", acceptor, form), tokens=12)
    numbers = {c.name: c.numbers for c in verdict.checks}
    assert numbers["cache.schedule"]["max_difference"] == 0
    if form in FORMS:
        assert numbers["cache.schedule"]["changes_of_form"] >= 3


@pytest.mark.slow
@pytest.mark.parametrize("acceptor", [a for a in ACCEPTORS if a != "decode.accept.residual"])
@pytest.mark.parametrize("form", [name for name in INDEX if name.startswith("cache.")])
@pytest.mark.parametrize("drafter", ["decode.draft.lookup", "decode.draft.recycle"])
def test_cache_forms_on_the_native_backend(native, form, acceptor, drafter):
    """As on hf, and bit for bit for trees as well."""
    knob = make_knob(form, FORMS.get(form, {}))
    if "native" not in knob.card.backends:
        pytest.skip(f"{form} does not run on the native backend")
    verdict = assert_holds(native, plan_of(drafter, acceptor, form), tokens=12)
    numbers = {c.name: c.numbers for c in verdict.checks}
    for name in ("bits.chain", "bits.tree", "cache.schedule"):
        assert numbers[name]["max_difference"] == 0
    assert numbers["bits.tree"]["bits_promised"] == 1
    if form in FORMS:
        assert numbers["cache.schedule"]["changes_of_form"] >= 3


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3", "mistral", "gemma2", "gpt2", "mamba"])
def test_other_families(family, tmp_path_factory):
    """Sliding windows, hybrids, learned positions and recurrent state under the same kit."""
    pytest.importorskip("torch")
    import tiny

    from steno.models import ModelSpec, load

    folder = tiny.make(family, tmp_path_factory.mktemp("families") / family)
    model = load(ModelSpec(source=str(folder), backend="hf", pinned=family != "mamba", width=12, threads=1))
    assert_holds(model, plan_of("decode.draft.lookup", "decode.accept.gumbel"), tokens=6)
