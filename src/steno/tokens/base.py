"""The protocol of this room: text <-> ids.

A tokenizer is *byte-exact* when every token stands for fixed bytes; then `decode_bytes(encode_bytes(data)) == data`
for any bytes at all, and `decode(encode(text)) == text` for any text.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol


class StreamDecoder(Protocol):
    """Turns ids into text one at a time; never emits half a character."""

    def push(self, token: int) -> str:
        """The text that became certain with this token; may be empty."""
        ...

    def flush(self) -> str:
        """What is left at the end; an unfinished character comes out as U+FFFD."""
        ...


class Tokenizer(Protocol):
    """Text <-> ids of one model."""

    @property
    def vocab(self) -> int:
        """One more than the largest id."""
        ...

    @property
    def eos(self) -> tuple[int, ...]:
        """Ids that end a text; empty where the model declares none."""
        ...

    @property
    def bos(self) -> int | None:
        """The id that begins a text where the model was trained with one."""
        ...

    @property
    def byte_exact(self) -> bool:
        """Whether every token stands for fixed bytes."""
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of a text, with nothing added before or after it."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included. Bytes that are not UTF-8 come out as U+FFFD."""
        ...

    def encode_bytes(self, data: bytes) -> list[int]:
        """The ids of any bytes: text where they are UTF-8, single-byte tokens where they are not."""
        ...

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The exact bytes of ids."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """The bytes one token stands for; a special token stands for its name."""
        ...

    def words(self) -> tuple[bytes, ...] | None:
        """The bytes that each id writes inside a text, b"" for special tokens; None where words have none of their own.

        Also for vocabularies with byte fallback, which are not byte-exact only because a text loses its first space.
        """
        ...

    def stream(self) -> StreamDecoder:
        """A fresh incremental decoder; the parts it emits join to `decode` of all ids pushed."""
        ...

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The ids of a conversation, ready for the answer: by the model's template, or as plain `role: text`."""
        ...
