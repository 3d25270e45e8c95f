"""Suggestions at a cursor: what is healed, what comes, and through which search."""

from dataclasses import dataclass, field

import pytest
from rig import Strict

from steno.core import Plan, make_knob
from steno.core.errors import KnobError, PromptError
from steno.decode.complete import complete, heal, provider
from steno.tokens import Words

TABLE = (*[bytes([byte]) for byte in range(128)], b"return", b"retu", b" value", b"\n\n", b" re", "ü".encode(), b"")
END = len(TABLE) - 1


@dataclass(frozen=True)
class Letters:
    """A tokenizer of the longest words."""

    bos: int | None = None
    byte_exact: bool = True
    table: tuple[bytes, ...] = field(default=TABLE, repr=False)

    def words(self):
        return self.table

    def encode(self, text: str) -> list[int]:
        return Words(table=self.table, ends=(), encode=list).longest(text.encode())

    def encode_bytes(self, data: bytes) -> list[int]:
        return self.encode(data.decode())


MODEL = Strict(vocab=len(TABLE), order=2, seed=3, end=END)
WORDS = Words(table=TABLE, ends=(END,), encode=Letters().encode_bytes)


def test_what_may_begin_a_longer_word_is_taken_back():
    encode = Letters().encode
    for text, kept, rest in (
        ("xretu", "x", "retu"), ("xreturn", "xreturn", ""), ("x ", "x", " "), ("xre", "x", "re"), ("xr", "x", "r"),
        ("x\n", "x", "\n"), ("x\n\n", "x\n\n", ""), ("", "", ""), ("r", "", "r"), ("xz", "xz", ""),
        ("x val", "x", " val"),
    ):  # fmt: skip
        assert heal(WORDS, encode(text)) == (encode(kept), rest.encode()), text
    # A character is never parted: its second byte alone is no text to ask for.
    halves = Words(table=(b"\xc3", b"\xbc", b"\xbc!", b"\xc3\xbc!"), ends=(), encode=list)
    assert heal(halves, [0, 1]) == ([], b"\xc3\xbc")
    assert heal(Words(table=(b"\xc3", b"\xbc", b"\xbc!"), ends=(), encode=list), [0, 1]) == ([0, 1], b"")


@pytest.mark.parametrize("name", ["diverse_beam", "lattice"])
def test_suggestions_go_on_from_the_cursor(name):
    for before in ("def f(x):\n    retu", "a = b", "r", ""):
        done = complete(MODEL, Letters(), before, count=3, lines=2, max_tokens=12, plan=Plan((provider(name, 3),)))
        assert 1 <= len(done.found) <= 3
        texts = [s.text for s in done.found]
        assert len(set(texts)) == len(texts) and all(len(t.strip().split("\n")) <= 4 for t in texts)
        assert before.endswith(done.healed)
        for s in done.found:
            whole = b"".join(TABLE[token] for token in s.tokens).decode()
            assert whole.startswith(done.healed + s.text)
        assert [s.score for s in done.found] == sorted((s.score for s in done.found), reverse=True)
        assert 0 < done.prompt_s < done.total_s and done.passes > 0


def test_lines_that_end_the_same_way_are_one_suggestion_and_others_are_looked_for():
    """A text ends after its line, so three groups of beams give three lines."""
    done = complete(MODEL, Letters(), "ab", count=3, lines=1, max_tokens=40)
    assert len(done.found) == 3
    assert all("\n" not in s.text.lstrip("\n") for s in done.found)


def test_providers_are_found_by_name_and_set_to_the_count():
    assert provider("decode.search.diverse_beam", 5).settings()["groups"] == 5
    assert provider("diverse_beam", 5).settings()["width"] == 1
    assert provider("lattice", 2).settings()["beams"] == 2
    assert provider("superposed", 4).settings()["k"] == 4
    with pytest.raises(KnobError, match=r"there is no provider .beem"):
        provider("beem", 1)


def test_a_plan_s_search_and_shapers_hold():
    cold = make_knob("decode.shape.top_k", {"k": 1})
    done = complete(MODEL, Letters(), "ab", count=3, max_tokens=8, plan=Plan((cold,)))
    assert len(done.found) == 1, "of one candidate a step there is one text"


def test_long_texts_keep_their_end_and_empty_ones_need_a_beginning():
    short = Strict(vocab=len(TABLE), order=2, seed=3, end=END, context=40)
    done = complete(short, Letters(), "word " * 100 + "ab", max_tokens=8)
    assert done.prompt_tokens <= 32 and done.found
    with pytest.raises(PromptError, match="no text before the cursor"):
        complete(Strict(vocab=len(TABLE)), Letters(), "")
    assert complete(Strict(vocab=len(TABLE)), Letters(bos=5), "", max_tokens=3).prompt_tokens == 1
