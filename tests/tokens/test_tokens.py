"""Text to ids and back: exact for any bytes, in streams, and with clear errors."""

import json
import random
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from steno.core.errors import ModelError, PromptError
from steno.tokens import Words, load
from steno.train.base import Document
from steno.train.recipe import Bucket, TokenizerSpec
from steno.train.vocab import END
from steno.train.vocab import train as train_vocab

SAMPLE = (
    'def add(left, right):\n    """Add two numbers."""\n    return left + right\n\n\nclass Box:\n\tvalue = 1234\n' * 40
)
TEXTS = [
    "",
    "x",
    SAMPLE[:200],
    "  leading, trailing  \n\n\t mixed \r\n end ",
    "naïve café — 世界 🙂🏽 \u202e\u0000\ufeff",
    "1234567890 3.14 0xFF",
    f"a{END}b",
    " " * 200 + "\n" * 50,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer")
    document = Document(source="s", path="a.py", bucket="code", licence="MIT", text=SAMPLE)
    train_vocab([document], [Bucket(name="code", weight=1.0)], TokenizerSpec(vocab=300, sample_mb=1.0), 128, out)
    return out


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_back(folder: Path, text: str) -> None:
    tokenizer = load(folder)
    assert tokenizer.byte_exact
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_any_bytes_come_back(folder: Path) -> None:
    tokenizer = load(folder)
    rng = random.Random(7)
    cases = [bytes(range(256)), b"\xff", b"ok \xe4\xb8 broken", "世".encode()[:2] + b"tail"]
    cases += [bytes(rng.randrange(256) for _ in range(rng.randrange(60))) for _ in range(200)]
    for data in cases:
        ids = tokenizer.encode_bytes(data)
        assert tokenizer.decode_bytes(ids) == data
        assert b"".join(tokenizer.token_bytes(token) for token in ids) == data


def test_digits_stand_alone_and_indentation_is_its_own_token(folder: Path) -> None:
    tokenizer = load(folder)
    parts = [tokenizer.token_bytes(token) for token in tokenizer.encode("x:\n    1234\n")]
    assert parts[-6:] == [b"    ", b"1", b"2", b"3", b"4", b"\n"]


def test_a_stream_never_emits_half_a_character(folder: Path) -> None:
    tokenizer = load(folder)
    for text in TEXTS:
        stream = tokenizer.stream()
        parts = [stream.push(token) for token in tokenizer.encode(text)]
        assert not any("\ufffd" in part for part in parts)
        assert "".join(parts) + stream.flush() == text
    stream = tokenizer.stream()
    ids = tokenizer.encode_bytes("世".encode()[:2])
    assert [stream.push(token) for token in ids] == ["", ""]
    assert stream.flush() == "\ufffd"


def test_stock_transformers_reads_the_same_ids(folder: Path) -> None:
    from transformers import AutoTokenizer

    stock = AutoTokenizer.from_pretrained(folder)
    ours = load(folder)
    for text in TEXTS:
        assert stock.encode(text, add_special_tokens=False) == ours.encode(text)
        assert stock.decode(ours.encode(text)) == text
    assert ours.eos == (stock.eos_token_id,)
    assert ours.bos == stock.bos_token_id
    assert ours.vocab == len(stock)


def test_other_tokenizers_stream_what_they_decode(tmp_path: Path) -> None:
    words = {"<unk>": 0, "▁Hello": 1, "▁world": 2, "!": 3} | {f"<0x{b:02X}>": 4 + b for b in range(256)}
    engine = tokenizers.Tokenizer(models.BPE(vocab=words, merges=[], unk_token="<unk>", byte_fallback=True))
    engine.pre_tokenizer = pre_tokenizers.Metaspace()
    engine.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    engine.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load(tmp_path)
    assert not tokenizer.byte_exact
    assert tokenizer.eos == ()
    ids = [1, 2, 3, *(4 + b for b in "世".encode()), 3]
    stream = tokenizer.stream()
    parts = [stream.push(token) for token in ids]
    assert "".join(parts) + stream.flush() == tokenizer.decode(ids) == "Hello world!世!"
    assert not any("\ufffd" in part for part in parts)
    with pytest.raises(ModelError, match="byte-level tokenizer"):
        tokenizer.encode_bytes(b"\xff")
    # Inside a text its words do have bytes: a low line is a space, <0xFF> a byte.
    table = tokenizer.words()
    assert table is not None and table[:4] == (b"<unk>", b" Hello", b" world", b"!") and table[4 + 255] == b"\xff"
    words = Words.of(tokenizer, len(words) + 2, frozenset({0}))
    assert words.table[0] == words.table[-1] == b"" and len(words.table) == tokenizer.vocab + 2
    assert words.encode(" world!世".encode()) == [2, 3, *(4 + b for b in "世".encode())]
    assert b"".join(words.table[token] for token in words.encode(b"x Hello\xff")) == b"x Hello\xff"


def test_words_are_the_bytes_that_ids_write(folder: Path, tmp_path: Path) -> None:
    tokenizer = load(folder)
    words = Words.of(tokenizer, tokenizer.vocab, tokenizer.eos)
    for text in TEXTS:
        # The name of a special token in a text is that token, which writes nothing.
        written = b"".join(words.table[token] for token in tokenizer.encode(text))
        assert written == text.replace("<|end|>", "").encode()
    assert words.ends == tuple(tokenizer.eos) and all(words.table[end] == b"" for end in words.ends)
    engine = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0, "word": 1}, unk_token="<unk>"))
    engine.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelError, match="its words have no fixed bytes"):
        Words.of(load(tmp_path), 2, ())


def test_chat_uses_the_template_or_plain_roles(folder: Path, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    plain = load(folder)
    assert plain.decode(plain.chat(messages)) == "user: Hi\n\nassistant:"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    (tmp_path / "chat_template.jinja").write_text(template)
    own = load(tmp_path)
    assert own.decode(own.chat(messages)) == "[user]Hi>"
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('only system first') }}")
    with pytest.raises(ModelError, match="only system first"):
        load(tmp_path).chat(messages)
    with pytest.raises(PromptError, match="empty"):
        plain.chat([])
    with pytest.raises(PromptError, match="role and content"):
        plain.chat([{"role": "user"}])


def test_missing_and_broken_tokenizers_say_what_to_do(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json in the folder. Save one"):
        load(tmp_path)
    raw = (folder / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(raw[: len(raw) // 2])
    with pytest.raises(ModelError, match=r"cannot be read .* Copy it again"):
        load(tmp_path)
    (tmp_path / "tokenizer.json").write_text(raw)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": END}}))
    assert load(tmp_path).eos == (0,)
    with pytest.raises(ModelError, match="token id must lie in"):
        load(tmp_path).token_bytes(100_000)
