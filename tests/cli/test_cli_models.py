"""The verbs on a real model folder, on both engines: streaming, drafts shown, tuning beside transformers, evidence."""

import json
from pathlib import Path

import pytest
from cli_tools import steno

from steno.core import Plan
from steno.measure import Run, from_json
from steno.tune import search


@pytest.fixture(autouse=True)
def one_round(monkeypatch: pytest.MonkeyPatch):
    """Every search does the same small work, however busy the machine is: the screen, then one round of the final."""
    monkeypatch.setattr(search, "MOST_REFINED", 0)
    monkeypatch.setattr(search, "MOST_ROUNDS", 1)


TEXT = "def add(a, b):\n    return a + b\n\ndef add(a, b):\n"
LOOKUP = ("--set", "decode.draft.lookup.num_tokens=6")


@pytest.mark.parametrize("backend", ["native", "hf"])
def test_run_streams_text_and_says_what_it_took(tiny: Path, backend: str):
    plain = steno("run", tiny, TEXT, "--backend", backend, "--max-tokens", "24", "--json")
    assert plain.code == 0, plain.err
    record = json.loads(plain.out)
    assert (len(record["tokens"]), record["finish"], record["backend"]) == (24, "length", backend)
    assert "24 tokens, " in plain.err
    assert "0.00 accepted per pass, ended by length" in plain.err
    shown = steno("run", tiny, "-", "--backend", backend, "--max-tokens", "24", stdin=TEXT + "\n")
    assert shown.out == record["text"] + "\n"


@pytest.mark.parametrize("backend", ["native", "hf"])
def test_drafted_text_is_the_same_text_with_marks(tiny: Path, backend: str):
    words = ("run", tiny, TEXT, "--backend", backend, "--max-tokens", "60", *(["--pinned"] if backend == "hf" else []))
    plain = steno(*words, "--json")
    drafted = steno(*words, *LOOKUP, "--json")
    assert json.loads(drafted.out)["tokens"] == json.loads(plain.out)["tokens"]
    pieces = json.loads(drafted.out)["pieces"]
    assert sum(p["drafted"] for p in pieces) > 0
    shown = steno(*words, *LOOKUP, "--show-drafts")
    # Brackets of the text itself stay: those added are as many as there are pieces with drafted text.
    text = json.loads(plain.out)["text"]
    marked = sum(1 for p in pieces if p["drafted"])
    assert shown.out.count("[") - text.count("[") <= marked
    assert shown.out.count("[") > text.count("[")
    assert sorted(shown.out.replace("[", "").replace("]", "")) == sorted(text.replace("[", "").replace("]", "") + "\n")


def test_table_models_write_ids_and_mark_drafts():
    plain = steno("run", "table:16:0:1", "3 1 4", "--max-tokens", "40")
    drafted = steno("run", "table:16:0:1", "3 1 4", "--max-tokens", "40", *LOOKUP, "--show-drafts")
    assert "[" in drafted.out
    assert drafted.out.replace("[", "").replace("]", "").split() == plain.out.split()


def test_stop_text_ends_the_output(tiny: Path):
    text = json.loads(steno("run", tiny, TEXT, "--max-tokens", "24", "--json").out)["text"]
    stop = text[6:8]
    cut = json.loads(steno("run", tiny, TEXT, "--max-tokens", "24", "--stop", stop, "--json").out)
    assert cut["text"] == text[: text.index(stop)]
    assert cut["finish"] == "stop"


def test_sampling_is_a_knob_and_the_seed_fixes_it(tiny: Path):
    words = ("run", tiny, TEXT, "--max-tokens", "16", "--set", "decode.shape.temperature.temperature=1.0")
    one, same, other = (steno(*words, "--seed", seed).out for seed in ("3", "3", "4"))
    assert one == same != other


def test_a_vocabulary_of_another_model(tiny: Path, tmp_path: Path):
    import shutil

    folder = tmp_path / "wrong"
    shutil.copytree(tiny, folder)
    data = json.loads((folder / "tokenizer.json").read_text())
    # The letter d becomes an id that the model does not have.
    data["model"]["vocab"]["d"] = 5000
    (folder / "tokenizer.json").write_text(json.dumps(data))
    steno("run", folder, "def").refused("the tokenizer makes id 5000 and the model has 259 ids", "tokenizer.json")


def test_a_missing_tokenizer(tiny: Path, tmp_path: Path):
    import shutil

    shutil.copytree(tiny, tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer.json").unlink()
    steno("run", tmp_path / "bare", "def").refused("no tokenizer.json in the folder")


def test_a_prompt_beyond_the_context(tiny: Path):
    steno("run", tiny, "x" * 300).refused("300 tokens", "256")


@pytest.mark.parametrize("backend, more", [("native", ()), ("hf", ("--pinned",))])
def test_tune_end_to_end_beside_transformers(tiny: Path, tmp_path: Path, backend: str, more: tuple[str, ...]):
    prompts = tmp_path / "p.jsonl"
    entries = [{"prompt": TEXT * k, "name": f"copy {k}", "category": "edit", "max_tokens": 16} for k in (1, 2, 3)]
    prompts.write_text("\n".join(json.dumps(e) for e in entries))
    words = (
        "tune",
        "--threads",
        "1",
        tiny,
        "--prompts",
        prompts,
        "--backend",
        backend,
        *more,
        "--minutes",
        "9",
        "--out",
        tmp_path / "o",
    )
    ran = steno(*words)
    assert ran.code == 0, ran.err
    assert "plain decoding" in ran.out
    assert "transformers 5" in ran.out
    assert "give the same ids on" in ran.out
    run = from_json((tmp_path / "o" / "run.json").read_text(), Run)
    assert (run.backend, run.num_prompts) == (backend, 3)
    assert run.peers[0].compared == 3
    assert any("KL" in note for note in run.notes) == (backend == "native")
    assert not [t.reason for t in run.trials if t.outcome.value in ("changed", "failed")]
    Plan.from_toml((tmp_path / "o" / "plan.toml").read_text()).check(backend)
    report = (tmp_path / "o" / "report.html").read_text()
    assert all(row.name in report for row in run.baseline.rows)
    again = steno(*words, "--resume", "--json")
    assert again.code == 0, again.err
    summary = json.loads(again.out)
    assert summary["baseline"]["ratio"] == pytest.approx(1.0)
    assert summary["peers"][0]["name"] == "transformers"


def test_tuning_with_a_temperature_holds_sampled_ids(tiny: Path, tmp_path: Path):
    prompts = tmp_path / "p.txt"
    prompts.write_text(TEXT)
    words = (
        "tune",
        tiny,
        "--threads",
        "1",
        "--prompts",
        prompts,
        "--minutes",
        "9",
        "--max-tokens",
        "16",
        "--out",
        tmp_path / "o",
    )
    ran = steno(*words, "--set", "decode.shape.temperature.temperature=0.8", "--json")
    assert ran.code == 0, ran.err
    run = from_json((tmp_path / "o" / "run.json").read_text(), Run)
    assert "temperature = 0.8" in run.baseline.plan
    assert all(t.identical == t.compared for t in run.trials if t.keeps.covers(run.keep))
    assert any("would be asked for something else" in note for note in run.notes)


def test_near_tuning_measures_what_it_changes(tiny: Path, tmp_path: Path):
    prompts = tmp_path / "p.txt"
    prompts.write_text(TEXT)
    words = (
        "tune",
        tiny,
        "--threads",
        "1",
        "--prompts",
        prompts,
        "--backend",
        "hf",
        "--minutes",
        "9",
        "--max-tokens",
        "8",
    )
    ran = steno(*words, "--keep", "near", "--max-kl", "0.5", "--out", tmp_path / "o")
    assert ran.code == 0, ran.err
    run = from_json((tmp_path / "o" / "run.json").read_text(), Run)
    near = [t for t in run.trials if "cache" in t.plan and t.fidelity is not None]
    assert near
    assert all(t.fidelity is None or t.fidelity.kl_mean <= 0.5 or t.outcome.value == "breach" for t in run.trials)


def test_bench_writes_evidence(tiny: Path, tmp_path: Path):
    prompts = tmp_path / "p.txt"
    prompts.write_text(TEXT)
    (tmp_path / "docs" / "evidence").mkdir(parents=True)
    words = ("--model", tiny, "--prompts", prompts, "--max-tokens", "6")
    for name in ("cache.affine", "weights.rtn", "decode.draft.lookup"):
        ran = steno("bench", name, *words, cwd=tmp_path)
        assert ran.code == 0, ran.err
        data = json.loads((tmp_path / "docs" / "evidence" / f"{name}.json").read_text())
        assert data["verdict"] in ("holds", "does not hold", "measured", "not testable here")
        assert {"claimed", "measured", "on", "table"} <= set(data)
        steno("bench", name, *words, cwd=tmp_path).refused("exists. Replace it with --force")
    steno("bench", "cache.afine", *words).refused("there is no knob 'cache.afine'", "cache.affine")
    steno("bench", "cache.gear", *words, "--backend", "native", "--out", "-").refused(
        "does not run on the native backend"
    )


def test_verify_proves_a_plan_and_fails_a_broken_promise(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    words = ("verify", "table:16:0:1", "--max-tokens", "6")
    good = steno(*words, *LOOKUP)
    assert good.code == 0, good.err + good.out
    assert "holds: " in good.out
    assert "keeps bits" in good.out
    data = json.loads(steno(*words, *LOOKUP, "--json").out)
    assert data["record"] == "Verdict"
    assert steno("verify", tiny, "--backend", "native", "--max-tokens", "4", *LOOKUP).code == 0

    from steno.decode.accept.greedy import Greedy

    # Every draft is taken unseen: what no plan may do.
    monkeypatch.setattr(Greedy, "verify", lambda self, draft, view: (list(range(min(1, len(draft.tokens)))), 0))
    bad = steno(*words, *LOOKUP)
    assert bad.code == 1
    assert "FAIL" in bad.out
    assert "DOES NOT HOLD" in bad.out
    assert "Traceback" not in bad.err
