"""Prompt files: what is read, what is refused, and that a bad line costs only itself."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from steno.core.errors import ModelError, PromptError
from steno.tune.prompts import DEMO, parse, prepare, read


class Letters:
    """A tokenizer of one id per character; 1 begins a text."""

    vocab = 128
    eos = ()
    bos = 1
    byte_exact = True

    def encode(self, text: str) -> list[int]:
        return [ord(c) for c in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        return self.encode("".join(f"{m['role']}:{m['content']}" for m in messages))


def lines(*entries: object) -> bytes:
    return "\n".join(json.dumps(e) for e in entries).encode()


def test_json_lines_with_every_key():
    data = lines(
        {"prompt": "abc", "name": "n", "category": "c", "max_tokens": 7},
        {"messages": [{"role": "user", "content": "hi"}]},
        {"prompt": [5, 6]},
    )
    found = parse(data, "p.jsonl")
    tasks, problems = prepare(found, Letters(), 128, 100, max_tokens=9)  # type: ignore[arg-type]
    assert problems == ()
    assert [t.request.prompt for t in tasks] == [(1, 97, 98, 99), tuple(map(ord, "user:hi")), (5, 6)]
    assert [t.request.max_tokens for t in tasks] == [7, 9, 9]
    assert (tasks[0].name, tasks[0].category, tasks[1].name) == ("n", "c", "prompt 2")
    assert [t.request.number for t in tasks] == [0, 1, 2]


def test_plain_text_is_blocks_between_blank_lines():
    found = parse(b"\n one\nmore\n  \n\r\ntwo\n", "p.txt")
    assert [(p.text, p.line) for p in found.prompts] == [(" one\nmore", 2), ("two", 6)]


@pytest.mark.parametrize("source, count", [("x.txt", 1), ("x", 1), ("x.jsonl", 1), ("stdin", 1)])
def test_the_format_is_known_by_ending_or_first_character(source: str, count: int):
    found = parse(b'{"prompt": "a"}', source)
    assert found.prompts[0].text == ('{"prompt": "a"}' if source == "x.txt" else "a")


@pytest.mark.parametrize(
    "line, words",
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ("[" * 100_000, "not JSON"),
        ('{"promt": "a"}', "unknown key 'promt'. Did you mean prompt"),
        ('{"name": "a"}', "exactly one of prompt and messages"),
        ('{"prompt": "a", "messages": []}', "exactly one of prompt and messages"),
        ('{"prompt": ""}', "the prompt is empty"),
        ('{"prompt": 3}', "prompt must be text or a list of token ids, got 3"),
        ('{"prompt": [true]}', "prompt must be text or a list of token ids"),
        ('{"prompt": "a", "max_tokens": 0}', "max_tokens must be a whole number from 1"),
        ('{"prompt": "a", "max_tokens": true}', "max_tokens must be a whole number from 1"),
        ('{"prompt": "a", "name": 3}', "name must be text"),
        ('{"messages": [{"role": "user"}]}', "needs a role and a content"),
        ('{"messages": "hi"}', "messages must be a list"),
    ],
)
def test_a_bad_line_is_named_and_the_rest_goes_on(line: str, words: str):
    found = parse(f'{{"prompt": "a"}}\n{line}\n{{"prompt": "b"}}'.encode(), "p.jsonl")
    assert [p.text for p in found.prompts] == ["a", "b"]
    assert len(found.problems) == 1
    assert found.problems[0].startswith("p.jsonl line 2: ")
    assert words in found.problems[0]


@pytest.mark.parametrize("data", [b"", b" \n\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_an_error(data: bytes):
    with pytest.raises(PromptError, match=r"p\.jsonl is empty. Write one JSON object per line"):
        parse(data, "p.jsonl")


def test_a_file_of_bad_lines_is_an_error_that_shows_them():
    with pytest.raises(PromptError, match=r"no usable prompt.\n  p\.jsonl line 1: not JSON"):
        parse(b"x", "p.jsonl")


def test_a_missing_file_is_an_error(tmp_path: Path):
    with pytest.raises(PromptError, match="cannot be read: No such file"):
        read(tmp_path / "none.jsonl")


def test_too_long_prompts_are_named_and_left_out():
    found = parse(lines({"prompt": "a" * 30, "name": "long"}, {"prompt": "ab"}), "p.jsonl")
    tasks, problems = prepare(found, Letters(), 128, 20, max_tokens=500)  # type: ignore[arg-type]
    assert [t.name for t in tasks] == ["prompt 2"]
    assert tasks[0].request.max_tokens == 17
    assert problems == ("line 1 (long): the prompt has 31 tokens, and the context holds 20. Shorten it.",)
    with pytest.raises(PromptError, match=r"no prompt can be run.\n  line 1"):
        prepare(found, Letters(), 128, 2, max_tokens=5)  # type: ignore[arg-type]


def test_a_tokenizer_of_another_model_is_an_error():
    found = parse(lines({"prompt": "a"}), "p.jsonl")
    with pytest.raises(ModelError, match="makes id 97 and the model has 50 ids"):
        prepare(found, Letters(), 50, 20, max_tokens=5)  # type: ignore[arg-type]


def test_table_prompts_are_ids():
    found = parse(b"3 1 4\n\n3,1\n\nwords\n\n99\n", "p.txt")
    tasks, problems = prepare(found, None, 32, 20, max_tokens=5)
    assert [t.request.prompt for t in tasks] == [(3, 1, 4), (3, 1)]
    assert "write its prompt as ids such as '3 1 4', got 'words'" in problems[0]
    assert "id 99 is outside the vocabulary of 32" in problems[1]


def test_equal_names_are_told_apart():
    found = parse(lines({"prompt": "a", "name": "x"}, {"prompt": "b", "name": "x"}), "p.jsonl")
    assert [p.name for p in found.prompts] == ["x (line 1)", "x (line 2)"]


def test_the_bundled_prompts_are_whole():
    found = read(DEMO)
    assert found.problems == ()
    assert len(found.prompts) >= 10
    assert {p.category for p in found.prompts} == {"edit", "complete", "text"}
    assert all(p.max_tokens and p.text and p.text == p.text.rstrip(" ") for p in found.prompts)
