"""Every method of the room is a record, computes what is not known, and says so."""

import pickle

import keepers
import pytest
from keepers import chain, same, text

from steno.core import Plan, make_knob, methods
from steno.core.errors import CapsError, PlanError, PromptError
from steno.decode import Request, generate
from steno.models import ModelSpec, load
from steno.reuse import Piece, ReuseKnob
from steno.reuse.group import Group

KNOBS = [make_knob(name, {}) for name in methods() if name.startswith("reuse.")]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("keepers")
    return {"native": keepers.engine(root / "native"), "hf": keepers.pinned(root / "hf")}


@pytest.mark.parametrize("knob", KNOBS, ids=lambda knob: knob.name)
def test_a_method_is_a_record(knob):
    assert isinstance(knob, ReuseKnob)
    assert pickle.loads(pickle.dumps(knob)) == knob
    assert Plan.from_toml(Plan((knob,)).to_toml()).knobs == (knob,)
    with pytest.raises(PlanError, match=rf"{knob.name} weaves a text from known pieces and decodes none"):
        generate(load(ModelSpec(source="table:16:0")), [Request(number=0, prompt=(1,))], Plan((knob,)))


@pytest.mark.parametrize("backend", ["native", "hf"])
@pytest.mark.parametrize("knob", KNOBS, ids=lambda knob: knob.name)
def test_a_text_that_nothing_is_known_of_is_prefilled(models, knob, backend):
    if backend not in knob.card.backends:
        with pytest.raises(CapsError):
            knob.weave(models[backend], [Piece(tokens=(5, 6)), Piece(tokens=(5,))], capacity=60)
        return
    ids = text(40)
    if isinstance(knob, Group):
        # A source alone: the answer goes on behind it.
        knob = Group(offset=40)
    plain = models[backend].open(1, 60)
    plain.prefill([ids])
    woven = knob.weave(models[backend], [Piece(tokens=tuple(ids))], capacity=60)
    assert (woven.computed, woven.reused) == (40, 0)
    assert woven.session.lengths == (40,)
    if backend == "native":
        same(chain(woven.session, [[7, 8]]), chain(plain, [[7, 8]]))
    else:
        # A tier of its own is a kernel of another shape.
        assert abs(chain(woven.session, [[7, 8]]) - chain(plain, [[7, 8]])).max() < 1e-4
    with pytest.raises(PromptError):
        knob.weave(models[backend], [Piece(tokens=tuple(ids))], capacity=39)
    keys, values = woven.session.read(0) if knob.name == "reuse.pie" else (None, None)
    if keys is not None:
        with pytest.raises(ValueError, match="piece 0 has 39 tokens, and keys or values of shape"):
            knob.weave(models[backend], [Piece(tokens=tuple(ids[1:]), keys=keys, values=values)], capacity=60)


@pytest.mark.parametrize("knob", KNOBS, ids=lambda knob: knob.name)
def test_models_whose_state_stays_inside_are_refused(knob):
    with pytest.raises(CapsError):
        knob.weave(load(ModelSpec(source="table:16:0")), [Piece(tokens=(1, 2)), Piece(tokens=(3,))], capacity=8)
