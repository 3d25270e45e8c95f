"""Bad input through the real command line: one clear message with the remedy, the right exit code, no traceback, and
nothing half-written in place of something good."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_tools import SRC, environment, process, steno

TABLE = "table:64:0:1"
PROMPTS = "3 1 4\n\n1 5 9\n\n2 6 5\n"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text(PROMPTS)
    return path


@pytest.mark.parametrize("verb", ["run", "tune", "verify"])
def test_a_missing_model(verb: str, tmp_path: Path, prompts: Path):
    more = {"run": ["3 1 4"], "tune": ["--prompts", prompts], "verify": []}[verb]
    steno(verb, tmp_path / "none", *more, cwd=tmp_path).refused("there is no model folder", "none", "or nib")
    steno(verb, prompts, *more, cwd=tmp_path).refused("is a file", "Name the folder")
    (tmp_path / "empty").mkdir()
    steno(verb, tmp_path / "empty", *more, cwd=tmp_path).refused("config.json", "not a model folder")


def test_a_damaged_or_unsupported_model(tmp_path: Path):
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "tokenizer.json").write_text("{")
    steno("run", tmp_path, "hi").refused("cannot be read")
    steno("run", "table:x:y", "3").refused("is no table model", "table:32:0")


def test_unknown_names_name_the_nearest():
    steno("run", TABLE, "3", "--backend", "natve").refused("there is no backend 'natve'. Did you mean native")
    steno("run", TABLE, "3", "--weights", "int9").refused("there is no weight form 'int9'", "int8")
    steno("run", TABLE, "3", "--device", "gpu").refused("there is no device 'gpu'", "cpu")
    steno("run", TABLE, "3", "--set", "decode.draft.lokup.num_tokens=3").refused(
        "no knob 'decode.draft.lokup'", "lookup"
    )
    steno("run", TABLE, "3", "--set", "decode.draft.lookup.num_token=3").refused("no field 'num_token'", "num_tokens")
    steno("run", TABLE, "3", "--set", "decode.draft.lookup.num_tokens=0").refused("between 1 and 255 tokens, got 0")


def test_plans_that_do_not_fit(tmp_path: Path):
    steno("run", TABLE, "3", "--set", "cache.affine.key_bits=4").refused("does not run on the table backend")
    steno("run", TABLE, "3", "--plan", tmp_path / "no.toml").refused("no.toml cannot be read", "Check the name")
    (tmp_path / "p.toml").write_text("steno = 1\nplan = 2\n")
    steno("run", TABLE, "3", "--plan", tmp_path / "p.toml").refused("unknown key 'plan'")


def test_prompts_that_cannot_be_run():
    steno("run", TABLE, "").refused("the prompt is empty")
    steno("run", TABLE, "-", stdin="").refused("the prompt is empty")
    steno("run", TABLE, "hello").refused("no tokenizer: write its prompt as ids")
    steno("run", TABLE, "99").refused("id 99 is outside the vocabulary of 64")
    long = " ".join(["3"] * 5000)
    steno("run", TABLE, long).refused("5000", "4096")


def test_prompt_files_that_cannot_be_used(tmp_path: Path):
    def tune(text: str, name: str = "p.jsonl"):
        path = tmp_path / name
        path.write_text(text)
        return steno(
            "tune", TABLE, "--prompts", path, "--minutes", "0.005", "--max-tokens", "8", "--out", tmp_path / "out"
        )

    tune("").refused("p.jsonl is empty", '{"prompt"')
    tune("nonsense\n").refused("no usable prompt", "line 1: not JSON")
    tune('{"prompt": "99"}\n').refused("no prompt can be run", "outside the vocabulary")
    steno("tune", TABLE, "--prompts", tmp_path / "none.txt").refused("none.txt cannot be read")
    steno("tune", TABLE).refused("tuning needs your prompts", "--prompts")
    assert not (tmp_path / "out").exists()
    mixed = tune('{"prompt": "3 1 4"}\n{"promt": "1"}\n{"prompt": [1, 5, 9]}\n')
    assert mixed.code == 0, mixed.err
    assert "line 2: unknown key 'promt'" in mixed.err
    assert "1 left out, 2 to run" in mixed.err


def test_existing_output_is_kept_unless_forced(tmp_path: Path, prompts: Path):
    out = tmp_path / "out"
    words = ("tune", TABLE, "--prompts", prompts, "--minutes", "0.005", "--max-tokens", "8", "--out", out)
    assert steno(*words).code == 0
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert set(before) == {"journal.jsonl", "plan.toml", "report.html", "run.json"}
    steno(*words).refused("holds a tuning already", "--resume", "--force")
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert steno(*words, "--force").code == 0
    assert steno(*words, "--resume").code == 0
    steno(*words, "--resume", "--seed", "7").refused("another --seed (0, now 7)", "--force")
    steno(*words[:-1], prompts).refused("is a file", "--out")
    steno(*words[:-1], prompts / "sub").refused("a file stands where a folder is needed")
    steno(*words[:-1], tmp_path / "new", "--resume").refused("there is no search to resume")


def test_limits_that_make_no_sense(prompts: Path, tmp_path: Path):
    words = ("tune", TABLE, "--prompts", prompts, "--out", tmp_path / "out")
    steno(*words, "--max-kl", "0.1").refused("--keep tokens allows none. Add --keep near")
    steno(*words, "--minutes", "0").refused("--minutes")
    steno(*words, "--set", "cache.affine.key_bits=4").refused("cache.affine keeps near, and tokens is asked for")


FULL_DISK = """
import errno, os
real, left = os.fsync, [{after}]
def fsync(fd):
    left[0] -= 1
    if left[0] < 0:
        raise OSError(errno.ENOSPC, "No space left on device")
    return real(fd)
os.fsync = fsync
"""


@pytest.mark.parametrize("after", [0, 3])
def test_a_full_disk_leaves_what_was_good(tmp_path: Path, prompts: Path, after: int):
    out = tmp_path / "out"
    words = ("tune", TABLE, "--prompts", prompts, "--minutes", "0.005", "--max-tokens", "8", "--out", out)
    assert steno(*words).code == 0
    good = {name: (out / name).read_bytes() for name in ("plan.toml", "report.html", "run.json")}
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(FULL_DISK.format(after=after))
    ran = process(*words, "--force", PYTHONPATH=f"{tmp_path / 'site'}{os.pathsep}{SRC}")
    ran.refused("there is no space left to write", "Free some")
    assert {name: (out / name).read_bytes() for name in good} == good
    assert not list(out.glob(".*"))
    for line in (out / "journal.jsonl").read_text().splitlines():
        json.loads(line)


def interrupt(process: "subprocess.Popen[bytes]", ready: Path | None, size: int) -> tuple[int, str, str]:
    """Ctrl-C once `ready` has grown to `size` bytes."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if ready is None or (ready.exists() and ready.stat().st_size > size):
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return process.returncode, out.decode(), err.decode()


def start(*words: str | Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "steno.cli.main", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        # Whoever runs the tests in the background may have passed on that interrupts are ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


def test_ctrl_c_in_tuning_loses_nothing_and_says_how_to_go_on(tmp_path: Path):
    many = tmp_path / "many.txt"
    many.write_text("\n\n".join(f"{i % 60} {i % 7} {i % 11}" for i in range(60)))
    out = tmp_path / "out"
    words = ("tune", TABLE, "--prompts", many, "--minutes", "2", "--max-tokens", "64", "--out", out, "--force")
    code, shown, err = interrupt(start(*words), out / "journal.jsonl", 5000)
    assert code == 130, err
    assert shown == ""
    assert "Traceback" not in err
    assert "nothing measured is lost. Go on with: steno tune" in err
    (again,) = [line for line in err.splitlines() if "Go on with" in line]
    assert again.endswith("--resume")
    assert "--force" not in again
    assert [p.name for p in out.iterdir()] == ["journal.jsonl"]
    journal = (out / "journal.jsonl").read_text()
    resumed = steno(*words[:-1], "--resume", "--minutes", "0.01")
    assert resumed.code == 0, resumed.err
    assert (out / "journal.jsonl").read_text().startswith(journal)
    assert (out / "report.html").exists()


def test_ctrl_c_while_running_keeps_what_was_written(tmp_path: Path):
    running = start("run", "table:30000:0", "3 1 4", "--max-tokens", "4000")
    assert running.stdout is not None
    first = running.stdout.read(8)
    code, rest, err = interrupt(running, None, 0)
    assert code == 130, err
    assert (first.decode() + rest).split()
    assert (first.decode() + rest).endswith("\n")
    assert "stopped after" in err
    assert "Traceback" not in err
