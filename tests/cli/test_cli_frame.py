"""The frame of the command line: verbs, the frozen flag set, exit codes, streams, and a fast --help."""

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from cli_tools import environment, steno

from steno.cli.main import VERBS, cli

MODEL = {"model", "--backend", "--weights", "--threads", "--device", "--pinned"}
PLAN = {"--plan", "--set"}

# The flag set is a promise: scripts depend on it. Change it here knowingly.
FLAGS = {
    "run": MODEL | PLAN | {"prompt", "--max-tokens", "--seed", "--stop", "--schema", "--show-drafts", "--json"},
    "complete": MODEL - {"model"}
    | PLAN
    | {"place", "--model", "--provider", "--count", "--lines", "--max-tokens", "--json"},
    "tune": MODEL
    | PLAN
    | {"--prompts", "--keep", "--max-kl", "--max-bytes", "--max-tokens", "--minutes", "--batch", "--seed", "--out"}
    | {"--resume", "--force", "--json"},
    "verify": MODEL | PLAN | {"--prompts", "--max-tokens", "--seed", "--json"},
    "bench": {"name", "--model", "--prompts", "--max-tokens", "--backend", "--set", "--out", "--force", "--json"},
    "methods": {"name", "--json"},
    "plan check": {"file", "--set", "--backend", "--keep", "--json"},
    "plan show": {"file", "--set", "--json"},
    "zip": {"path", "--out", "--model", "--chunk", "--threads", "--rm", "--stats", "--force", "--json"},
    "unzip": {"file", "--out", "--list", "--test", "--range", "--salvage", "--model", "--threads", "--max-bytes"}
    | {"--stats", "--force", "--json"},
    "train": {"recipe", "--out", "--minutes", "--resume", "--device", "--prepare", "--finish", "--score", "--json"},
}


def leaves(group: click.Group, path: str = "") -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        full = f"{path} {name}".strip()
        found |= leaves(command, full) if isinstance(command, click.Group) else {full: command}
    return found


def test_the_flag_set_is_frozen():
    found = {
        name: {p.opts[-1] if isinstance(p, click.Option) else str(p.name) for p in command.params}
        for name, command in leaves(cli).items()
    }
    assert found == FLAGS


def test_every_verb_and_option_has_a_help_text():
    for name, command in leaves(cli).items():
        assert command.get_short_help_str(), name
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, f"{name} {option.opts}"


@pytest.mark.parametrize("words", [(), *((verb,) for verb in VERBS)])
def test_help_and_cheap_verbs_import_nothing_heavy(words: tuple[str, ...]):
    code = (
        "import sys\n"
        "from steno.cli.main import main\n"
        "try:\n"
        f"    main([*{words!r}, '--help'])\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0, end.code\n"
        "heavy = {'torch', 'numpy', 'transformers', 'rich', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage: steno" in done.stdout


@pytest.mark.parametrize("words", [("methods",), ("methods", "--json"), ("plan", "check", "-")])
def test_listing_and_checking_import_no_torch(words: tuple[str, ...]):
    code = (
        "import sys\n"
        "from steno.cli.main import main\n"
        "try:\n"
        f"    main({list(words)!r})\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0, end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        input="steno = 1\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_version_and_short_help():
    assert steno("--version").out.startswith("steno 0.")
    assert "Usage: steno" in steno("-h").out


def test_an_unknown_verb_names_the_nearest():
    steno("metods").refused("there is no verb 'metods'. Did you mean methods", "steno --help")


def test_an_unknown_option_is_a_plain_error():
    steno("methods", "--jsn").refused("No such option")


def test_a_missing_argument_is_a_plain_error():
    steno("run").refused("Missing argument 'MODEL'")


def test_debug_shows_where_an_error_arose():
    shown = steno("plan", "check", "nowhere.toml", STENO_DEBUG="1")
    assert shown.code == 2
    assert "Traceback" in shown.err


def test_a_closed_pipe_is_no_error():
    # The reader goes away before the writer begins.
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import time; time.sleep(0.5); from steno.cli.main import main; main(['methods', '--json'])",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    error = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(30) == 0
    assert error == ""


def test_defects_are_told_apart_from_user_errors(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    from steno.cli import main as frame

    def broken(name: str) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(frame, "import_module", broken)
    with pytest.raises(SystemExit) as end:
        frame.main(["methods"])
    assert end.value.code == 1
    assert "RuntimeError: boom. This is a defect of steno; STENO_DEBUG=1 shows where" in capsys.readouterr().err


def test_methods_lists_the_whole_index():
    from steno.core import methods

    listed = steno("methods").out.splitlines()
    assert [line.split()[0] for line in listed[1:]] == list(methods())
    data = json.loads(steno("methods", "--json").out)
    assert list(data) == list(methods())
    page = steno("methods", "cache.affine").out
    assert "KIVI" in page
    assert "key_bits = 4" in page
    assert json.loads(steno("methods", "cache.affine", "--json").out)["keeps"] == "near"
    steno("methods", "cache.afine").refused("there is no knob 'cache.afine'", "cache.affine")


def test_methods_shows_evidence_where_there_is_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from click.testing import CliRunner

    from steno.cli import methods as verb

    monkeypatch.setattr(verb, "evidence", lambda name: {"verdict": "holds"} if name == "cache.affine" else None)
    out = CliRunner().invoke(verb.command, []).output
    (line,) = [text for text in out.splitlines() if text.startswith("cache.affine ")]
    assert " holds " in line


PLAN_TEXT = 'steno = 1\n\n[[knob]]\nname = "cache.affine"\nkey_bits = 4\n'


def test_plan_check_and_show(tmp_path: Path):
    path = tmp_path / "plan.toml"
    path.write_text(PLAN_TEXT)
    assert steno("plan", "check", path).out == "1 knob, keeps near, runs on: native, hf\n"
    assert json.loads(steno("plan", "check", "-", "--json", stdin=PLAN_TEXT).out) == {
        "fits": True, "problems": [], "keeps": "near", "backends": ["native", "hf"],
    }  # fmt: skip
    shown = steno("plan", "show", path, "--set", "cache.affine.key_bits=2").out
    assert "key_bits = 2" in shown
    assert steno("plan", "show", "-", stdin=shown).out == shown
    assert json.loads(steno("plan", "show", path, "--json").out)["knob"][0]["value_bits"] == 4


@pytest.mark.parametrize(
    "text, sets, more, words",
    [
        ("steno = 1\n[[knob]]\nname = 'cache.afine'\n", (), (), ("there is no knob 'cache.afine'", "cache.affine")),
        ("steno = 1\n[[knob]]\nname = 'cache.affine'\nkey_bit = 4\n", (), (), ("has no field 'key_bit'", "key_bits")),
        ("steno = 1\nkonb = 1\n", (), (), ("unknown key 'konb'", "knob")),
        ("steno = 9\n", (), (), ("version 9", "reads version 1")),
        ("steno 1", (), (), ("not valid TOML",)),
        (PLAN_TEXT, ("cache.affine.key_bits=5",), (), ("key_bits must be one of 8, 4, 3, 2, got 5",)),
        (PLAN_TEXT, ("cache.affine.key_bits",), (), ("--set takes KNOB.FIELD=VALUE",)),
        (PLAN_TEXT.replace("affine", "gear"), (), ("--backend", "native"), ("does not run on the native backend",)),
        (PLAN_TEXT, (), ("--backend", "natve"), ("there is no backend 'natve'", "native")),
        (PLAN_TEXT, (), ("--keep", "tokens"), ("cache.affine keeps near, and tokens is asked for",)),
        (PLAN_TEXT, ("cache.window.sinks=4",), (), ("cannot stand beside",)),
    ],
)
def test_bad_plans_are_refused_with_the_remedy(
    text: str, sets: tuple[str, ...], more: tuple[str, ...], words: tuple[str, ...]
):
    options = [word for item in sets for word in ("--set", item)]
    steno("plan", "check", "-", *options, *more, stdin=text).refused(*words)


def test_a_plan_that_does_not_fit_says_so_in_json_too():
    ran = steno("plan", "check", "-", "--json", "--keep", "tokens", stdin=PLAN_TEXT)
    assert ran.code == 2
    assert json.loads(ran.out)["fits"] is False
