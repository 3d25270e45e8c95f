"""Which bytes a token stands for, for the two vocabularies where that is a fixed fact.

Byte-level BPE (GPT-2 and after) writes each byte as one printable character. Byte-fallback BPE (Llama 2 and its like)
writes `<0xNN>` for single bytes and a low line for a space, but drops the first space of a text, so it is not exact.
"""

import re
from collections.abc import Iterator
from functools import lru_cache

import tokenizers

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@lru_cache(maxsize=1)
def alphabet() -> dict[str, int]:
    """GPT-2's character for each byte: printable Latin-1 as itself, the rest from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    found = {chr(byte): byte for byte in plain}
    rest = [byte for byte in range(256) if byte not in set(plain)]
    return found | {chr(256 + n): byte for n, byte in enumerate(rest)}


def table(engine: tokenizers.Tokenizer, decoder: object) -> tuple[bytes, ...] | None:
    """Bytes by id for a byte-level tokenizer without a normaliser; None for any other."""
    if not _byte_level(decoder) or engine.normalizer is not None:
        return None
    added = {number: token.content for number, token in engine.get_added_tokens_decoder().items()}
    size = max(engine.get_vocab(with_added_tokens=True).values()) + 1
    letters = alphabet()
    rows: list[bytes] = []
    for number in range(size):
        word = engine.id_to_token(number)
        if number in added or word is None:
            rows.append(added.get(number, "").encode("utf-8"))
        elif all(ch in letters for ch in word):
            rows.append(bytes(letters[ch] for ch in word))
        else:
            return None
    return tuple(rows)


def fallback(engine: tokenizers.Tokenizer, decoder: object) -> tuple[bytes, ...] | None:
    """What each id of a byte-fallback vocabulary writes inside a text; None for any other.

    A low line (U+2581) is a space, `<0xNN>` a byte.
    """
    if not _falls_back(decoder):
        return None
    added = {number: token.content for number, token in engine.get_added_tokens_decoder().items()}
    size = max(engine.get_vocab(with_added_tokens=True).values()) + 1
    rows: list[bytes] = []
    for number in range(size):
        word = added.get(number) or engine.id_to_token(number) or ""
        byte = _BYTE.fullmatch(word)
        rows.append(bytes([int(byte[1], 16)]) if byte else word.replace("\u2581", " ").encode("utf-8"))
    return tuple(rows)


def singles(rows: tuple[bytes, ...]) -> tuple[int, ...] | None:
    """The id of the token for each single byte, or None where one is missing."""
    found = {row[0]: number for number, row in reversed(list(enumerate(rows))) if len(row) == 1}
    return tuple(found[byte] for byte in range(256)) if len(found) == 256 else None


def runs(data: bytes) -> Iterator[str | bytes]:
    """Bytes as longest runs of valid UTF-8 (as text) and of what is not (as bytes), in order.

    >>> list(runs(b"a\\xffb"))
    ['a', b'\\xff', 'b']
    """
    while data:
        try:
            yield data.decode("utf-8")
            return
        except UnicodeDecodeError as error:
            if error.start:
                yield data[: error.start].decode("utf-8")
            yield data[error.start : error.end]
            data = data[error.end :]


def _falls_back(decoder: object) -> bool:
    if not isinstance(decoder, dict):
        return False
    steps = decoder.get("decoders", []) if decoder.get("type") == "Sequence" else [decoder]
    return any(step.get("type") == "ByteFallback" for step in steps)


def _byte_level(decoder: object) -> bool:
    if not isinstance(decoder, dict):
        return False
    if decoder.get("type") == "Sequence":
        return [step.get("type") for step in decoder.get("decoders", [])] == ["ByteLevel"]
    return decoder.get("type") == "ByteLevel"
