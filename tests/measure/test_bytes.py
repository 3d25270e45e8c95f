"""Bytes: each storage once, files by part."""

import json
import os

import pytest

from steno.measure.bytes import file_bytes, kv_values, measure, process_peak, storage_bytes
from steno.models.table import TableModel

torch = pytest.importorskip("torch")


def test_views_share_their_storage():
    base = torch.zeros(100, dtype=torch.float32)
    assert storage_bytes(base) == 400
    assert storage_bytes(base, base[:10], {"a": [base.view(10, 10), base.t()]}) == 400
    assert storage_bytes(base[:1]) == 400
    assert storage_bytes(base, torch.zeros(3, dtype=torch.int8)) == 403


def test_tied_weights_count_once():
    model = torch.nn.Sequential(torch.nn.Embedding(8, 4), torch.nn.Linear(4, 8, bias=False))
    whole = storage_bytes(model)
    model[1].weight = model[0].weight
    assert (whole, storage_bytes(model)) == (256, 128)


def test_storages_inside_records_slots_and_cycles():
    class Slotted:
        __slots__ = ("other", "tensor")

    item = Slotted()
    item.tensor = torch.zeros(5, dtype=torch.float64)
    item.other = [item, {"again": item}]
    assert storage_bytes(item) == 40


def test_files_by_part(tmp_path):
    for name, size in {
        "model-00001-of-00002.safetensors": 10, "model-00002-of-00002.safetensors": 20, "tokenizer.json": 3,
        "tokenizer.model": 4, "merges.txt": 5, "config.json": 6, "generation_config.json": 1, "README.md": 7,
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(b"x" * size)
    os.link(tmp_path / "model-00001-of-00002.safetensors", tmp_path / "copy.safetensors")
    assert file_bytes(tmp_path) == {"weights": 30, "tokenizer": 12, "config": 7, "other": 7}


def test_kv_values_from_a_config(tmp_path):
    config = tmp_path / "config.json"
    llama = {"num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 64}
    config.write_text(json.dumps(llama))
    assert kv_values(tmp_path) == 2 * 3 * 2 * 8
    config.write_text(json.dumps({**llama, "head_dim": 32}))
    assert kv_values(tmp_path) == 2 * 3 * 2 * 32
    config.write_text(json.dumps({"n_layer": 2, "n_head": 4, "n_embd": 32}))
    assert kv_values(tmp_path) == 2 * 2 * 4 * 8
    config.write_text("{}")
    assert kv_values(tmp_path) is None
    assert kv_values(tmp_path / "none") is None


def test_a_model_without_kv_reports_none():
    got = measure(TableModel(), rows=[[1, 2], [3]])
    assert (got.weights, got.cache, got.bits_per_value, got.cache_tokens) == (0, {}, None, 3)
    assert got.process_peak == pytest.approx(process_peak(), rel=0.5)
    assert process_peak() > 2**24
