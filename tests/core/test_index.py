"""The index is read from the sources without an import, and unknown names are answered with the nearest."""

import sys

import pytest

from steno.core import index
from steno.core.errors import KnobError, MissingExtra


def test_committed_index_is_what_the_sources_say():
    assert index.INDEX.read_text(encoding="utf-8") == index.dump(index.scan()), "run: make docs"


def test_every_method_builds_with_its_defaults_and_its_record_says_so():
    for name, entry in index.scan().items():
        knob = index.knob_class(name)()
        assert knob.name == name
        assert set(knob.settings()) == set(entry["fields"])
        assert entry["doc"], f"{name} has no docstring"


def test_scan_imports_nothing(tmp_path):
    room = tmp_path / "cache"
    room.mkdir()
    (room / "boom.py").write_text(
        '"""Boom."""\nraise SystemExit\nCARD = Card(paper="A paper", keeps="near")\n'
        "class Boom(CacheKnob):\n    card: ClassVar[Card] = CARD\n    size: int = 3\n"
    )
    found = index.scan(tmp_path)
    assert found["cache.boom"]["card"] == {"paper": "A paper", "keeps": "near"}
    assert found["cache.boom"]["fields"] == {"size": ["int", "3"]}


def test_fields_of_the_rooms_base_stand_before_the_methods_own(tmp_path):
    room = tmp_path / "decode" / "draft"
    room.mkdir(parents=True)
    (room.parent / "base.py").write_text(
        "class A(Knob):\n    size: int = 1\n    card: ClassVar[Card]\nclass B(A):\n    width: int = 2\n"
    )
    (room / "boom.py").write_text(
        '"""Boom."""\nCARD = Card(paper="A paper")\n'
        "class Boom(B):\n    card: ClassVar[Card] = CARD\n    own: int = 3\n    size: float = 4.0\n"
    )
    fields = index.scan(tmp_path)["decode.draft.boom"]["fields"]
    assert list(fields.items()) == [("size", ["float", "4.0"]), ("width", ["int", "2"]), ("own", ["int", "3"])]


def test_a_card_without_a_knob_is_an_error(tmp_path):
    path = tmp_path / "cache" / "half.py"
    path.parent.mkdir()
    path.write_text('"""Half."""\nCARD = Card(paper="A")\n')
    with pytest.raises(KnobError, match="has a CARD and no knob class"):
        index.scan(tmp_path)


def test_unknown_name_lists_three():
    with pytest.raises(KnobError, match=r"there is no knob 'cache.afine'. Did you mean cache.affine"):
        index.knob_class("cache.afine")


def test_missing_extra_prints_the_install_line(monkeypatch):
    entry = index.Entry(module="steno_absent_module", knob="K", doc="d", card={"requires": ["hf"]}, fields={})
    monkeypatch.setattr(index, "methods", lambda: {"x.y": entry})
    sys.modules.pop("steno_absent_module", None)
    with pytest.raises(MissingExtra) as caught:
        monkeypatch.setattr(index, "import_module", _torch_is_missing)
        index.knob_class("x.y")
    assert str(caught.value) == "x.y needs torch, which is not installed. Run: pip install 'steno[hf]'"


def _torch_is_missing(name):
    raise ModuleNotFoundError("No module named 'torch'", name="torch")
