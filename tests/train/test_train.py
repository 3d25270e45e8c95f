"""Packing, the schedule, the loop and what comes out of it."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import steno
from steno.core.errors import DataError, OutputError, UserError
from steno.train import checkpoint, corpus, curve, evaluate, export, main, recipe
from steno.train import model as models
from steno.train.base import CheckpointError, Interrupted
from steno.train.loop import Run, train
from steno.train.pack import Packed
from steno.train.recipe import Schedule
from steno.train.schedule import rate

SOURCE = Path(steno.__file__).parents[1]


class StopAt(Packed):
    """Packed data that presses Ctrl-C while a given step's batch is drawn."""

    at = 3

    def batch(self, weights: dict[str, float], rows: int, tokens: int, seed: int, step: int) -> np.ndarray:
        if step == self.at:
            os.kill(os.getpid(), signal.SIGINT)
        return super().batch(weights, rows, tokens, seed, step)


def job(recipe_file: Path, out: Path, packed: Packed | None = None, optimizer: str = "adamw") -> Run:
    plan = recipe.load(recipe_file)
    plan = replace(plan, schedule=replace(plan.schedule, optimizer=optimizer))
    return Run(recipe=plan, packed=packed or Packed(out / "tokens"), out=out, device="cpu", fingerprint="f")


def test_packing_is_lossless_and_splits_by_file(out: Path) -> None:
    packed = Packed(out / "tokens")
    words = Tokenizer.from_file(str(out / "tokenizer" / "tokenizer.json"))
    valid = {d.name: d.text for d in corpus.load(out / "corpus", "valid")}
    stream = packed.valid["code"]
    for text in packed.texts["code"]:
        ids = stream[text.start : text.stop].tolist()
        assert words.decode(ids, skip_special_tokens=False) == valid[text.name]
        assert text.num_bytes == len(valid[text.name].encode())
        assert stream[text.stop] == packed.separator
    whole = words.decode(packed.train["code"].tolist(), skip_special_tokens=True)
    assert whole == "".join(d.text for d in corpus.load(out / "corpus", "train"))


def test_batches_are_a_function_of_seed_and_step(out: Path) -> None:
    packed = Packed(out / "tokens")
    one = packed.batch({"code": 1.0}, 4, 33, seed=1, step=5)
    assert one.shape == (4, 33)
    assert (one == packed.batch({"code": 1.0}, 4, 33, seed=1, step=5)).all()
    assert (one != packed.batch({"code": 1.0}, 4, 33, seed=1, step=6)).any()
    assert (one != packed.batch({"code": 1.0}, 4, 33, seed=2, step=5)).any()
    with pytest.raises(DataError, match=r"Lower schedule\.sequence"):
        packed.batch({"code": 1.0}, 1, 10**7, seed=1, step=0)


def test_damaged_tokens_are_named(out: Path) -> None:
    with open(out / "tokens" / "train-code.bin", "ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match=r"train-code\.bin: .* Pack the corpus again"):
        Packed(out / "tokens")
    (out / "tokens" / "index.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be read"):
        Packed(out / "tokens")


@pytest.mark.parametrize("decay", ["cosine", "wsd"])
def test_the_rate_warms_up_then_falls_to_its_end(decay: str) -> None:
    schedule = Schedule(steps=10, batch=1, sequence=8, lr=1.0, warmup_steps=10, decay=decay, final_lr=0.1)
    rates = [rate(schedule, step, step / 100) for step in range(101)]
    assert rates[4] == pytest.approx(0.5, rel=0.01)
    assert max(rates) == pytest.approx(1.0, rel=0.03)
    assert rates[-1] == pytest.approx(0.1)
    assert all(a >= b - 1e-12 for a, b in pairwise(rates[10:]))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_equals_one_that_never_stopped(recipe_file: Path, out: Path, optimizer: str) -> None:
    whole = train(job(recipe_file, out, optimizer=optimizer), resume=False)
    straight = (out / "log.jsonl").read_text()
    with pytest.raises(Interrupted, match=r"step 4; the state is saved in .* --resume"):
        train(job(recipe_file, out, StopAt(out / "tokens"), optimizer), resume=False)
    resumed = train(job(recipe_file, out, optimizer=optimizer), resume=True)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    keep = ("step", "tokens", "lr", "loss", "valid")
    rows = [
        [{k: v for k, v in json.loads(r).items() if k in keep} for r in text.splitlines()]
        for text in (straight, (out / "log.jsonl").read_text())
    ]
    assert rows[0] == rows[1]


def test_a_damaged_or_foreign_checkpoint_is_refused(recipe_file: Path, out: Path) -> None:
    with pytest.raises(CheckpointError, match="there is none to resume"):
        train(job(recipe_file, out), resume=True)
    train(job(recipe_file, out), resume=False)
    with pytest.raises(CheckpointError, match="another recipe"):
        train(replace(job(recipe_file, out), fingerprint="g"), resume=True)
    path = out / checkpoint.NAME
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    for damaged in (data, data[:-1], data[:10], b""):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            train(job(recipe_file, out), resume=True)


def test_a_full_disk_leaves_the_previous_checkpoint(
    recipe_file: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(job(recipe_file, out), resume=False)
    before = (out / checkpoint.NAME).read_bytes()
    state = checkpoint.load(out, "f")

    def full(_file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"No space left .* previous checkpoint is intact. Free \d+ MB"):
        checkpoint.save(out, state)
    assert (out / checkpoint.NAME).read_bytes() == before
    assert not list(out.glob("*.part"))


def test_a_time_budget_ends_the_schedule(recipe_file: Path, out: Path) -> None:
    run = job(recipe_file, out)
    endless = replace(run.recipe, schedule=replace(run.recipe.schedule, steps=10**6, eval_every=10**6))
    train(replace(run, recipe=endless, minutes=1 / 60), resume=False)
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert 0 < rows[-1]["step"] < 10**6
    last = [row["lr"] for row in rows if "lr" in row][-1]
    assert last < 0.5 * endless.schedule.lr


def test_a_whole_run_ends_in_a_stock_folder(recipe_file: Path, out: Path) -> None:
    report = main(recipe_file, out=out, device="cpu")
    assert json.loads((out / "report.json").read_text()) == report
    size: dict[str, object] = report["size"]  # type: ignore[assignment]
    files = {path.name: path.stat().st_size for path in (out / "model").iterdir()}
    assert size["files"] == files
    assert size["total"] == sum(files.values())
    assert sum(size["parts"].values()) == files["model.safetensors"]  # type: ignore[union-attr]
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    bits: dict[str, dict[str, dict[str, float]]] = report["bits_per_byte"]  # type: ignore[assignment]
    assert bits["int8"]["code"]["bits_per_byte"] == pytest.approx(bits["master"]["code"]["bits_per_byte"], rel=0.01)
    with pytest.raises(OutputError, match=r"holds a run already\. Add --resume"):
        main(recipe_file, out=out, device="cpu")
    assert main(recipe_file, out=out, device="cpu", finish_only=True, score=False)["size"] == size


@pytest.mark.filterwarnings("ignore")
def test_the_exported_folder_means_what_it_says(recipe_file: Path, out: Path) -> None:
    trained = train(job(recipe_file, out), resume=False)
    ledger = export.export(trained, out / "tokenizer", out / "model")
    assert ledger.total == sum(path.stat().st_size for path in (out / "model").iterdir())
    assert sum(ledger.parts.values()) == ledger.files["model.safetensors"]
    stock = AutoModelForCausalLM.from_pretrained(out / "model", dtype=torch.float32)
    assert isinstance(stock, LlamaForCausalLM)
    ids = torch.arange(20)[None] * 7 % 320
    meant = models.build(job(recipe_file, out).recipe.shape, 320, 0, seed=9)
    meant.load_state_dict(export.meaning(out / "model", trained))
    with torch.no_grad():
        assert torch.allclose(stock(ids).logits, models.logits(meant, ids), atol=1e-5)
        master = models.logits(trained, ids)
        assert (stock(ids).logits - master).abs().max() < 0.05 * master.abs().max()
        assert torch.allclose(trained(ids).logits, master, atol=1e-6)


def test_bits_of_a_uniform_model_are_log2_of_the_vocabulary() -> None:
    def uniform(ids: torch.Tensor) -> torch.Tensor:
        assert ids.shape[1] <= 16
        return torch.zeros(*ids.shape, 32)

    for length in (0, 1, 15, 16, 17, 40, 64):
        bits = evaluate.document_bits(uniform, np.zeros(length, dtype=np.int64), 0, 16, "cpu")
        assert bits == pytest.approx(5 * length)


def test_every_token_is_scored_once_with_its_own_past() -> None:
    """A model that knows the next token of a counting text must pay nothing, except where it cannot know."""

    def counting(ids: torch.Tensor) -> torch.Tensor:
        return 1e4 * torch.nn.functional.one_hot((ids + 1) % 32, 32).float()

    text = np.arange(1, 60) % 32
    assert evaluate.document_bits(counting, text, 0, 16, "cpu") == pytest.approx(0, abs=1e-6)


def test_the_curve_is_drawn_from_any_log(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1, "tokens": 5, "elapsed_s": 1, "lr": 0.1, "loss": 3.0, "norm": 1}\n')
    curve.draw(tmp_path / "log.jsonl", tmp_path / "c.png", "one point")
    assert (tmp_path / "c.png").stat().st_size > 1000


def test_an_unusable_device_or_folder_is_refused(recipe_file: Path, out: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Try --device cpu"):
        main(recipe_file, out=out, device="nonsense")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Choose another --out"):
        main(recipe_file, out=tmp_path / "file", device="cpu")


def test_ctrl_c_saves_and_exits_130(recipe_file: Path, out: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.toml"
    long.write_text(recipe_file.read_text().replace("steps = 6", "steps = 1000000"))
    process = subprocess.Popen(
        [sys.executable, "-m", "steno", "train", str(long), "--out", str(out), "--device", "cpu"],
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (out / "log.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, talk = process.communicate(timeout=60)
    assert process.returncode == 130, talk
    assert "--resume" in talk
    assert "Traceback" not in talk
    state = torch.load(
        io.BytesIO((out / checkpoint.NAME).read_bytes()[len(checkpoint.MAGIC) + 32 :]), weights_only=True
    )
    assert state["step"] > 0
