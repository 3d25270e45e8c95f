"""Incremental decoding."""

import codecs
from typing import Protocol


class _ByteDecoder(Protocol):
    def token_bytes(self, token: int) -> bytes: ...


class _TextDecoder(Protocol):
    def decode(self, ids: list[int]) -> str: ...


class ByteStream:
    """For byte-exact tokenizers: bytes wait until their character is whole."""

    def __init__(self, tokenizer: _ByteDecoder) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class TextStream:
    """For other tokenizers: decode a short window twice and emit the difference, so that spaces come out right."""

    def __init__(self, tokenizer: _TextDecoder) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0
        self._read = 0

    def push(self, token: int) -> str:
        self._ids.append(token)
        return self._emit(final=False)

    def flush(self) -> str:
        return self._emit(final=True)

    def _emit(self, *, final: bool) -> str:
        before = self._tokenizer.decode(self._ids[self._start : self._read])
        after = self._tokenizer.decode(self._ids[self._start :])
        if len(after) <= len(before) or (after.endswith("\ufffd") and not final):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return after[len(before) :]
