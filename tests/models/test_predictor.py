"""A model as the coders see it: scores depend on the past alone, and a model's identity on its content alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from steno.core.errors import CapsError, ModelError
from steno.models import NIB
from steno.models._content import content_id
from steno.models.predictor import predictor
from steno.models.table import TableModel

IDS = np.array([[(7 * i * i + b) % 32 for i in range(60)] for b in range(2)], np.int32)


def scores(width: int, *, context: int) -> np.ndarray:
    """[2, 60, V] scores of IDS, `width` columns at a time, every other pass with drafts that are not kept."""
    streams, out, at = predictor(TableModel(context=context)).open(2), [], 0
    while at < IDS.shape[1]:
        take = min(width, streams.room(), IDS.shape[1] - at)
        if at % 2:
            streams.ahead(np.full((2, min(3, streams.room())), 5, np.int32))
        out.append(streams.ahead(np.ascontiguousarray(IDS[:, at : at + take])).copy())
        streams.keep([take, take])
        at += take
    return np.concatenate(out, axis=1)


@pytest.mark.parametrize("width", [2, 5, 16, 60])
def test_scores_do_not_depend_on_how_the_past_was_cut(width: int):
    assert np.array_equal(scores(width, context=16), scores(1, context=16))


def test_the_past_slides_by_a_saw_tooth():
    model = TableModel(context=16)
    found = scores(1, context=16)
    # The 17th symbol finds a full context: the last four of the sixteen are read again.
    past = [*IDS[0, 12:16], IDS[0, 16]]
    assert np.array_equal(found[0, 16], model.row([int(i) for i in past]))
    assert np.array_equal(found[0, 15], model.row(IDS[0, :16].tolist()))


def test_a_stream_that_has_ended_does_not_matter():
    both = predictor(TableModel()).open(2)
    one = both.ahead(np.array([[3, 4], [-1, -1]], np.int32))[0].copy()
    both.keep([2, 0])
    assert np.array_equal(one, predictor(TableModel()).open(1).ahead(np.array([[3, 4]], np.int32))[0])
    assert both.room() >= 1


def test_identity_is_content(tmp_path: Path):
    folder = tmp_path / "elsewhere"
    shutil.copytree(NIB, folder)
    assert content_id(folder) == content_id(NIB)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(dict(reversed(config.items())) | {"transformers_version": "0"}))
    assert content_id(folder) == content_id(NIB)
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-6}))
    assert content_id(folder) != content_id(NIB)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = bytearray((folder / "model.safetensors").read_bytes())
    tensors[-1] ^= 1
    (folder / "model.safetensors").write_bytes(tensors)
    assert content_id(folder) != content_id(NIB)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="safetensors"):
        content_id(folder)


def test_window_and_start_belong_to_the_identity():
    prints = {predictor(TableModel(context=c), s).fingerprint for c in (16, 64) for s in (0, 1)}
    assert len(prints) == 4


def test_models_that_promise_no_exact_numbers_are_refused():
    with pytest.raises(CapsError, match="same on every machine"):
        predictor(TableModel(backend="hf"))
    with pytest.raises(ModelError, match="too short"):
        predictor(TableModel(context=4))
