"""Every form of the room keeps the Tier contract: at its defaults, and at settings that stress it."""

import pickle
import subprocess
import sys

import pytest
import torch
from tier_contract import CHECKS, Feed, kv_shape

from steno.cache import CacheKnob, _paged
from steno.cache.adaquant import AdaQuant
from steno.cache.affine import Affine
from steno.cache.aqua import Aqua
from steno.cache.cachegen import CacheGen
from steno.cache.citrus import Citrus
from steno.cache.dense import Dense
from steno.cache.ems import EMS
from steno.cache.gear import Gear
from steno.cache.h2o import H2O
from steno.cache.kvheads import KVHeads
from steno.cache.lacache import LaCache
from steno.cache.less import Less
from steno.cache.mikv import MiKV
from steno.cache.minicache import MiniCache
from steno.cache.prefixkv import PrefixKV
from steno.cache.prune import Prune
from steno.cache.razor import Razor
from steno.cache.rotatekv import RotateKV
from steno.cache.sentencekv import SentenceKV
from steno.cache.snap import Snap
from steno.cache.specache import SpeCache
from steno.cache.staircase import Staircase
from steno.cache.vidkv import VidKV
from steno.cache.window import Window
from steno.core import Plan, make_knob, methods

DEFAULTS = [make_knob(name, {}) for name in methods() if name.startswith("cache.")]
STRESS = [
    Affine(key_bits=2, value_bits=3, group=8, value_group=8, residual=0, block=8),
    Affine(key_bits=8, value_bits=2, group=32, value_group=8, residual=32, block=96),
    Window(sinks=0, window=1, block=1),
    Window(sinks=7, window=13, block=5),
    Window(sinks=100, window=40, block=32),
    Gear(key_bits=4, value_bits=3, rank=3, outliers=10, residual=0, block=32),
    Gear(rank=0, outliers=0, residual=5, block=32),
    RotateKV(key_bits=3, heads=1, group=8, reorder=False, sinks=0, residual=0, block=32),
    VidKV(wide=0, value_bits=2, sinks=0, residual=3),
    VidKV(wide=100, residual=0),
    AdaQuant(bits=5, key_norms=(9.0, 2.0), value_norms=(1.0, 3.0), residual=0, block=32),
    H2O(heavy=5, residual=0, block=4),
    Snap(budget=7, window=3, kernel=3, residual=4, block=5),
    Prune(tokens=40, bits=2, group=8, window=2, kernel=1, residual=2, block=7),
    MiKV(important=6, high_bits=8, low_bits=2, group=8, residual=0, block=4),
    Staircase(first=8, second=8, residual=5, block=4),
    Staircase(first=0, second=0, residual=0, block=4),
    LaCache(budget=8, sinks=2, residual=3, block=5),
    MiniCache(start=0, residual=3, block=32),
    Razor(heads=(0, 3), window=9, share=30, sinks=2, residual=3, block=64),
    EMS(budget=6, similarity=-1, floor=0, window=2, kernel=3, residual=3, block=5),
    Citrus(budget=9, instruction=5, residual=3, block=4),
    SentenceKV(pool=30, budget=9, ends=(3, 8, 19), longest=5, sinks=2, window=2, kernel=3, residual=3, block=7),
    CacheGen(key_bits=(3, 2), value_bits=(8,), group=8, residual=3, block=32),
    KVHeads(heads=1, keep=50, residual=3, block=5),
    Aqua(bits=3, first_bits=8, sinks=0, residual=3, block=32),
    SpeCache(bits=3, fetch=7, on_disk=True, residual=3, block=32),
    Less(heavy=5, residual=2, block=4),
    PrefixKV(budget=9, shares=(1.0, 2.0, 0.5), sinks=2, residual=3, block=5),
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
        assert knob.open(kv_shape()).page_tokens <= max(32, getattr(knob, "block", 0))
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
