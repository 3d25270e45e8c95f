"""What every method of the room promises about the folder it writes."""

import errno
import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from steno.core import Plan
from steno.core.errors import DataError, ModelError, OutputError
from steno.models.checkpoint import Checkpoint
from steno.weights import Ledger
from steno.weights._output import Piece, Shard
from steno.weights.lowrank import LowRank
from steno.weights.rtn import Rtn

KNOBS = [Rtn(), Rtn(bits=4, group=32), Rtn(embeddings=True, head=True), LowRank(keep=0.6)]
NAMES = ["int8", "int4", "int8 all", "lowrank"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def sharded(model, tmp_path) -> Path:
    """The tiny Llama in two files with an index."""
    folder = tmp_path / "sharded"
    shutil.copytree(model("llama"), folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(places.values()):
        save_file({n: t for n, t in tensors.items() if places[n] == file}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


@pytest.mark.parametrize("knob", KNOBS, ids=NAMES)
@pytest.mark.parametrize("name", ["llama", "llama-tied", "llama-bias", "qwen3"])
def test_the_ledger_is_right_to_the_byte(model, texts, tmp_path, knob, name):
    out = tmp_path / "out"
    ledger = knob.apply(model(name, torch.bfloat16), out, calibration=texts)
    files = {p.name: p.stat().st_size for p in out.glob("*.safetensors")}
    assert ledger.files() == files
    assert ledger.total_bytes == sum(files.values())
    others = [p for p in out.iterdir() if p.suffix != ".safetensors" and p.name != "steno_ledger.json"]
    assert ledger.other_bytes == sum(p.stat().st_size for p in others)
    assert Ledger.read(out) == ledger
    with safe_open(out / "model.safetensors", "pt") as file:
        sizes = {n: file.get_tensor(n).nbytes for n in file.keys()}  # noqa: SIM118
    assert {line.tensor: line.bytes for line in ledger.lines if line.part != "header"} == sizes
    assert ledger.total_bytes < ledger.source_bytes
    assert sum(ledger.parts().values()) == ledger.total_bytes
    source = Checkpoint(model(name, torch.bfloat16))
    assert 2 * ledger.parameters == sum(e.stop - e.start for e in source.entries.values())


@pytest.mark.parametrize("knob", KNOBS, ids=NAMES)
def test_equal_inputs_give_equal_bytes(model, texts, tmp_path, knob):
    for name in ("one", "two"):
        knob.apply(model("llama"), tmp_path / name, calibration=texts)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize("knob", KNOBS, ids=NAMES)
def test_the_source_is_not_touched_and_the_rest_is_copied(model, texts, tmp_path, knob):
    before = contents(model("llama"))
    knob.apply(model("llama"), tmp_path / "out", calibration=texts)
    assert contents(model("llama")) == before
    after = contents(tmp_path / "out")
    assert after["tokenizer.json"] == before["tokenizer.json"]
    assert after["generation_config.json"] == before["generation_config.json"]
    assert Plan.from_toml(after["steno_plan.toml"].decode()) == Plan((knob,))
    assert not [name for name in after if name.startswith(".")]


@pytest.mark.parametrize("knob", KNOBS, ids=NAMES)
def test_shards_stay_shards(sharded, model, texts, tmp_path, knob):
    ledger = knob.apply(sharded, tmp_path / "out", calibration=texts)
    assert len(ledger.files()) == 2
    assert ledger.files() == {p.name: p.stat().st_size for p in (tmp_path / "out").glob("*.safetensors")}
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {line.tensor: line.file for line in ledger.lines if line.tensor}
    assert index["metadata"]["total_size"] == ledger.total_bytes - ledger.parts()["header"]
    knob.apply(model("llama"), tmp_path / "whole", calibration=texts)
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    parts = [load_file(tmp_path / "out" / name) for name in ledger.files()]
    merged = {name: tensor for part in parts for name, tensor in part.items()}
    assert merged.keys() == whole.keys()
    assert all(torch.equal(merged[name], whole[name]) for name in whole)


@pytest.mark.parametrize("knob", KNOBS, ids=NAMES)
def test_an_existing_output_is_refused_unless_forced(model, texts, tmp_path, knob):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"exists already.*--force"):
        knob.apply(model("llama"), out, calibration=texts)
    assert contents(out) == {"precious.txt": b"mine"}
    knob.apply(model("llama"), out, calibration=texts, force=True)
    assert (out / "config.json").exists()
    assert not (out / "precious.txt").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_may_be_filled_and_a_file_not(model, tmp_path):
    (tmp_path / "out").mkdir()
    Rtn().apply(model("llama"), tmp_path / "out")
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file"):
        Rtn().apply(model("llama"), tmp_path / "file", force=True)


def test_the_source_folder_is_no_place_for_the_output(model):
    for out in (model("llama"), model("llama") / "q8"):
        with pytest.raises(OutputError, match="lies in the source folder"):
            Rtn().apply(model("llama"), out, force=True)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("knob", KNOBS, ids=NAMES)
def test_a_full_disk_or_ctrl_c_leaves_nothing(model, texts, tmp_path, monkeypatch, knob, fault, force):
    out = tmp_path / "out"
    if force:
        out.mkdir()
        (out / "precious.txt").write_text("mine")
    calls = []

    def put(self, name, array):
        calls.append(name)
        if len(calls) == 9:
            raise fault

    monkeypatch.setattr(Shard, "put", put)
    expected = KeyboardInterrupt if isinstance(fault, KeyboardInterrupt) else OutputError
    with pytest.raises(expected) as caught:
        knob.apply(model("llama"), out, calibration=texts, force=force)
    if expected is OutputError:
        assert "the disk is full" in str(caught.value)
    assert len(calls) == 9
    assert [p.name for p in tmp_path.iterdir()] == (["out"] if force else [])
    assert not force or contents(out) == {"precious.txt": b"mine"}


def test_what_a_killed_run_left_is_swept(model, tmp_path):
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part" / "stale.json").write_text("{}")
    Rtn().apply(model("llama"), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out" / "stale.json").exists()


def test_a_failed_rename_gives_the_old_folder_back(model, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    rename = Path.rename

    def fail(self, target):
        if self.name.endswith(".part"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OutputError, match="Permission denied"):
        Rtn().apply(model("llama"), out, force=True)
    assert contents(out) == {"precious.txt": b"mine"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_too_small_a_disk_is_said_before_writing(model, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000, 0, 1000))
    with pytest.raises(OutputError, match="1,000 bytes free"):
        Rtn().apply(model("llama"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("knob", KNOBS, ids=NAMES)
@pytest.mark.parametrize("cut", [4, 200, -100])
def test_truncated_weights_are_named(model, texts, tmp_path, knob, cut):
    shutil.copytree(model("llama"), tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        knob.apply(tmp_path / "m", tmp_path / "out", calibration=texts)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_missing_model_and_a_foreign_scheme(model, tmp_path):
    with pytest.raises(ModelError, match="is not a folder"):
        Rtn().apply(tmp_path / "nowhere", tmp_path / "out")
    shutil.copytree(model("llama"), tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ModelError, match="gptq"):
        Rtn().apply(tmp_path / "m", tmp_path / "out")


def test_progress_reaches_its_end(model, texts, tmp_path):
    for number, knob in enumerate((Rtn(), LowRank(keep=0.6))):
        seen = []
        knob.apply(
            model("llama"), tmp_path / str(number), calibration=texts, progress=lambda *row, seen=seen: seen.append(row)
        )
        what, done, total = seen[-1]
        assert (what, done) == ("writing", total)
        assert all(0 <= d <= t for _, d, t in seen)


def test_a_damaged_ledger_is_the_datas_fault(tmp_path):
    (tmp_path / "steno_ledger.json").write_text('{"steno": 1}')
    with pytest.raises(DataError, match=r"steno_ledger\.json cannot be read"):
        Ledger.read(tmp_path)


def test_a_shard_is_what_safetensors_reads(tmp_path):
    import numpy as np

    pieces = [Piece("a", "I8", (3,), "payload"), Piece("b", "I64", (2,), "shapes"), Piece("c", "F32", (0, 4), "scales")]
    with Shard(tmp_path / "x.safetensors", pieces) as shard:
        shard.put("c", np.zeros((0, 4), np.float32))
        shard.put("a", np.array([1, -2, 3], np.int8))
        shard.put("b", np.array([5, 6]))
    assert (tmp_path / "x.safetensors").stat().st_size == shard.bytes == sum(line.bytes for line in shard.lines)
    got = load_file(tmp_path / "x.safetensors")
    assert got["a"].tolist() == [1, -2, 3]
    assert got["b"].tolist() == [5, 6]
    assert got["c"].shape == (0, 4)
