"""The checks of the house find what they are for."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import house  # noqa: E402


def test_the_import_law_holds():
    assert house.import_law() == []


def test_method_files_are_short():
    assert house.method_sizes() == []


def test_links_lead_somewhere():
    assert house.dead_links() == []


@pytest.mark.parametrize(
    ("file", "line", "words"),
    [
        ("core/a.py", "from steno.models import load", "core must not import models"),
        ("cache/a.py", "import steno.weights.rtn", "cache must not import weights"),
        ("models/a.py", "from ..decode import generate", "models must not import decode"),
        ("decode/draft/a.py", "from .b import thing", "must not import its sibling"),
    ],
)
def test_a_breach_of_the_law_is_found(tmp_path, file, line, words):
    source = tmp_path / "steno"
    path = source / file
    path.parent.mkdir(parents=True)
    (path.parent / "b.py").write_text("thing = 1\n")
    path.write_text(line + "\n")
    assert words in "\n".join(house.import_law(source))


def test_light_imports_stay_light():
    """Listing methods, checking a plan and `--help` must not pay for torch."""
    code = (
        "import sys, steno, steno.core, steno.models, steno.cli.main, steno.decode\n"
        "from steno.core import Plan, knob_class, methods\n"
        "[knob_class(name)() for name in methods()]\n"
        "heavy = {'torch', 'transformers', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
