"""`steno complete`: places, files, what is printed."""

import json
from pathlib import Path

import pytest
from cli_tools import steno

CODE = "def total(values):\n    result = 0\n    retu\n"


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "code.py"
    path.write_text(CODE)
    return path


def complete(place: object, tiny: Path, *more: str, **other: str):
    return steno("complete", str(place), "--model", tiny, "--max-tokens", "8", *more, **other)


def test_suggestions_come_on_stdout_and_latency_on_stderr(tiny: Path, code: Path):
    ran = complete(f"{code}:2:5", tiny)
    assert ran.code == 0 and 1 <= ran.out.count("\n") <= 3 and ran.out.strip()
    assert " suggestions in " in ran.err and " ms: prompt of " in ran.err and " passes" in ran.err
    many = complete(f"{code}:2:5", tiny, "--lines", "3")
    assert many.code == 0


def test_superposed_decoding_provides_as_well(tiny: Path, code: Path):
    done = json.loads(complete(f"{code}:3", tiny, "--provider", "superposed", "--backend", "hf", "--json").out)
    assert 1 <= len(done["found"]) <= 3 and done["passes"] <= 16


def test_json_holds_all_of_it(tiny: Path, code: Path):
    done = json.loads(complete(f"{code}:3", tiny, "--json", "--count", "2").out)
    assert set(done) == {"model", "found", "healed", "prompt_tokens", "passes", "prompt_s", "total_s"}
    assert done["prompt_tokens"] == len(CODE.rstrip("\n").encode()) and 1 <= len(done["found"]) <= 2
    assert all(set(s) == {"text", "score", "tokens"} for s in done["found"])


def test_a_column_is_a_character_before_which_the_cursor_stands(tiny: Path, tmp_path: Path):
    path = tmp_path / "wide.txt"
    path.write_bytes("\ufeffüx = 1\r\nyz\r\n".encode())
    size = lambda place: json.loads(complete(f"{path}:{place}", tiny, "--json").out)["prompt_tokens"]  # noqa: E731
    assert size("1:2") == len("ü".encode()) and size("1") == size("1:7") == len("üx = 1".encode())
    assert size("2") == len("üx = 1\nyz".encode()), "one character ends a line, whatever the file has"
    assert size("3") == len("üx = 1\nyz\n".encode())
    typed = complete("-:1:3", tiny, "--json", stdin="abc")
    assert json.loads(typed.out)["prompt_tokens"] == 2


@pytest.mark.parametrize("place, words", [
    ("{}", "a place is FILE:LINE or FILE:LINE:COL"), ("{}:", "a place is FILE:LINE"), ("{}:x", "a place is FILE:LINE"),
    ("{}:0", "count from 1"), ("{}:1:0", "count from 1"), ("{}:5", "has 4 lines; line 5 is past its end"),
    ("{}:1:20", "line 1 has columns 1 to 19, got 20"), ("{}:-1", "a place is FILE:LINE"),
    ("{}.none:1", "cannot be read: No such file"),
])  # fmt: skip
def test_bad_places_are_refused_with_the_rule(tiny: Path, code: Path, place: str, words: str):
    complete(place.format(code), tiny).refused(words)


def test_what_is_no_text_is_refused(tiny: Path, code: Path, tmp_path: Path):
    complete(f"{tmp_path}:1", tiny).refused("cannot be read: Is a directory")
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"ab\xffc")
    complete(f"{bad}:1", tiny).refused("is not UTF-8 text (byte 2)")
    bad.write_bytes("text".encode("utf-16"))
    complete(f"{bad}:1", tiny).refused("is not text: it holds a zero byte")
    wrong = complete(f"{code}:1", tiny, "--provider", "diverse_beem")
    wrong.refused("there is no provider 'diverse_beem'", "diverse_beam")
    steno("complete", f"{code}:1", "--model", "table:300:0").refused("no tokenizer")
    steno("complete", f"{code}:1", "--model", tiny, "--set", "decode.draft.lookup.num_tokens=4").refused(
        "cannot stand beside"
    )


def test_an_unknown_option_is_an_error_still(tiny: Path, code: Path):
    complete(f"{code}:1", tiny, "--conut", "3").refused("--conut")
