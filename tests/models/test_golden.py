"""Golden vectors: recorded bits of nib and of models made from integers, on every instruction set of this machine."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import golden_models
import numpy as np
import pytest
from golden_models import PLANTED, STORE, merge, plant

from steno.core.errors import ModelError
from steno.models import NIB, _engine, golden, native
from steno.models._fill import FORMS
from steno.models.table import TableModel


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("golden")
    return [NIB, *(plant(name, root / name) for name in PLANTED)]


def recorded() -> list[dict[str, str]]:
    """Vectors of nib and of the planted models, as the repository holds them under the present arithmetic."""
    store = json.loads(STORE.read_text())
    stored = [json.loads((NIB / golden.FILE).read_text()), *(store[name] for name in PLANTED)]
    assert all(list(one) == [native.ARITHMETIC] for one in stored), "run tests/models/golden_models.py"
    return [one[native.ARITHMETIC] for one in stored]


@pytest.mark.parametrize("isa", _engine.instruction_sets())
def test_every_instruction_set_gives_the_recorded_bits(folders, isa):
    run = subprocess.run(
        [sys.executable, golden_models.__file__, *map(str, folders)],
        env={**os.environ, "STENO_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert all(set(one) == set(FORMS) for one in found)
    assert found == recorded()


def test_vector_is_the_hash_of_the_logits_of_forty_ids_one_at_a_time():
    model = native.load(NIB, weights="int8", threads=1)
    ids = golden.golden_ids(64, model.vocab)
    assert ids[:4] == [3, 2059, 3569, 437]
    session, rows = model.open(1, 64), []
    for i in ids:
        rows.append(session.prefill([[i]], last=True)[0].copy())
    expected = hashlib.sha256(b"steno golden 1 64 4096\n" + np.stack(rows[24:]).astype("<f4").tobytes())
    assert golden.golden_vector(model) == expected.hexdigest()


def test_one_bit_of_one_weight_is_noticed(folders, tmp_path):
    """Every bit of the hash is of logits, so a folder with one flipped bit fails its own test, and says what to do."""
    folder = tmp_path / "nib"
    shutil.copytree(NIB, folder)
    assert native.self_test(native.load(folder, weights="int8"))
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(
        ModelError, match=r"nib: its golden vector is .* was recorded.*fetch the model again.*STENO_ISA=scalar"
    ):
        native.self_test(native.load(folder, weights="int8"))


def test_folder_without_a_vector_proves_nothing(folders):
    model = native.load(folders[1], weights="fp32")
    assert native.self_test(model) is False
    golden.check_golden(model, golden.golden_vector(model))


def test_damaged_file_is_the_users_to_mend(tmp_path):
    (tmp_path / golden.FILE).write_text("[")
    with pytest.raises(ModelError, match=r"steno_golden.json cannot be read.*Fetch the model again"):
        golden.recorded(tmp_path, native.ARITHMETIC, "int8")
    (tmp_path / golden.FILE).write_text("[]")
    with pytest.raises(ModelError, match="cannot be read"):
        golden.recorded(tmp_path, native.ARITHMETIC, "int8")
    (tmp_path / golden.FILE).write_text('{"another": {"int8": "00"}}')
    assert golden.recorded(tmp_path, native.ARITHMETIC, "int8") is None


@pytest.mark.parametrize(("vocab", "context"), [(32, 4096), (301, 30), (2, 1)])
def test_any_backend_has_a_vector(vocab, context):
    model = TableModel(vocab=vocab, context=context)
    golden.check_golden(model, golden.golden_vector(model))
    with pytest.raises(ModelError, match=r"golden vector.*\(table\)"):
        golden.check_golden(model, golden.golden_vector(TableModel(vocab=vocab, context=context, seed=1)))


def test_record_keeps_the_name_honest():
    old = {native.ARITHMETIC: {"fp32": "aa", "int8": "bb"}}
    assert merge(old, "m", {"fp32": "aa", "new": "cc"}) == {
        native.ARITHMETIC: {"fp32": "aa", "int8": "bb", "new": "cc"}
    }
    with pytest.raises(SystemExit, match=r"m: the bits of int8 moved.*give ARITHMETIC"):
        merge(old, "m", {"fp32": "aa", "int8": "xx"})
    assert merge({"steno native 0": {"int8": "bb"}}, "m", {"int8": "xx"}) == {native.ARITHMETIC: {"int8": "xx"}}
