"""Every form of the room keeps the Tier contract: at its defaults, and at settings that stress it."""

import pickle
import subprocess
import sys

import pytest
import torch
from tier_contract import CHECKS, Feed, kv_shape

from steno.cache import CacheKnob, _paged
from steno.cache.affine import Affine
from steno.cache.dense import Dense
from steno.cache.window import Window
from steno.core import Plan, make_knob, methods

DEFAULTS = [make_knob(name, {}) for name in methods() if name.startswith("cache.")]
STRESS = [
    Affine(key_bits=2, value_bits=3, group=8, value_group=8, residual=0, block=8),
    Affine(key_bits=8, value_bits=2, group=32, value_group=8, residual=32, block=96),
    Window(sinks=0, window=1, block=1),
    Window(sinks=7, window=13, block=5),
    Window(sinks=100, window=40, block=32),
]


def label(knob: CacheKnob) -> str:
    return repr(knob)


def test_the_index_knows_the_room():
    assert {knob.name for knob in DEFAULTS} >= {"cache.affine", "cache.dense", "cache.window"}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("pages", ["one page", "many pages"])
@pytest.mark.parametrize("knob", [*DEFAULTS, *STRESS], ids=label)
def test_contract(knob, pages, check, monkeypatch):
    if pages == "many pages":
        monkeypatch.setattr(_paged, "SCRATCH_BYTES", 4096)
        assert knob.open(kv_shape()).page_tokens == 32
    check(knob)


@pytest.mark.parametrize("knob", [Affine(key_bits=3, value_bits=2), Window(sinks=300, window=8)], ids=label)
@pytest.mark.parametrize(("heads", "groups", "dim"), [(9, 3, 64), (8, 1, 80), (4, 4, 128)])
def test_no_column_or_neighbour_changes_a_bit_at_real_head_widths(knob, heads, groups, dim):
    shape = kv_shape(layers=1, heads=heads, groups=groups, dim=dim)
    if dim == 80 and isinstance(knob, Affine):
        knob = Affine(key_bits=3, value_bits=2, value_group=16)
    feed = Feed(knob, shape, seeds=[1, 2, 3])
    for row, length in enumerate((777, 1500, 200)):
        feed.grow(row, length)
    q, positions = feed.ask(16)
    out, lse = feed.held.attend(0, q, positions, dim**-0.5)
    for shift in (1, 5, 15):
        turned = feed.held.attend(0, q.roll(shift, 2), positions.roll(shift, 1), dim**-0.5)
        assert torch.equal(turned[0], out.roll(shift, 2))
        assert torch.equal(turned[1], lse.roll(shift, 2))
    alone = feed.held.fork([1]).attend(0, q[1:2], positions[1:2], dim**-0.5)
    assert torch.equal(alone[0][0], out[1])


@pytest.mark.parametrize("knob", [*DEFAULTS, *STRESS], ids=label)
def test_a_form_is_a_record(knob):
    assert isinstance(knob, CacheKnob)
    assert pickle.loads(pickle.dumps(knob)) == knob
    assert Plan.from_toml(Plan((knob,)).to_toml()).knobs == (knob,)
    assert len({knob, make_knob(knob.name, knob.settings())}) == 1


def test_a_plan_holds_one_form():
    assert "cannot stand beside" in "".join(Plan((Affine(), Window())).clashes("hf"))
    assert Plan((Dense(),)).keeps == "bits"
    assert Plan((Affine(),)).keeps == Plan((Window(),)).keeps == "near"


def test_records_cost_no_torch():
    code = (
        "import sys, steno.cache.affine, steno.cache.dense, steno.cache.window as w\n"
        "w.Window().due(5000); steno.cache.affine.Affine().due(5000)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
