"""Tokenizers in Hugging Face form (`tokenizer.json`), read by the `tokenizers` library alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tokenizers
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from steno.core.errors import ModelError
from steno.tokens import _bytes, _chat, _stream
from steno.tokens.base import StreamDecoder

_SIDE_FILES = ("tokenizer_config.json", "config.json", "generation_config.json", "chat_template.jinja")


def load(model: str | Path) -> "HfTokenizer":
    """The tokenizer of a model folder, or of a hub repository by its id.

    Raises ModelError, with the remedy, where there is no tokenizer or it cannot be read.
    """
    folder = Path(model)
    if not folder.is_dir():
        folder = _download(str(model))
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(
            f"Model {folder}: no tokenizer.json in the folder. Save one there with "
            "transformers.AutoTokenizer.from_pretrained(...).save_pretrained(...)."
        )
    try:
        raw = path.read_text(encoding="utf-8")
        engine = tokenizers.Tokenizer.from_str(raw)
        decoder = json.loads(raw).get("decoder")
    except Exception as error:
        raise ModelError(
            f"Model {folder}: tokenizer.json cannot be read ({_line(error)}). "
            "Copy it again from where the model came from."
        ) from None
    # Padding and truncation would change what the caller asked for.
    engine.no_padding()
    engine.no_truncation()
    config = _json(folder / "tokenizer_config.json")
    return HfTokenizer(
        engine=engine,
        eos=_ends(engine, config, folder),
        bos=_named(engine, config.get("bos_token")),
        template=_template(config, folder),
        specials=_specials(config),
        table=_bytes.table(engine, decoder),
        fallback=_bytes.fallback(engine, decoder),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class HfTokenizer:
    """See `base.Tokenizer`. `table` holds each id's bytes; None for a tokenizer that is not byte-exact.

    fallback  what each id writes inside a text, where single bytes have tokens of their own
    """

    engine: tokenizers.Tokenizer
    eos: tuple[int, ...]
    bos: int | None
    template: str | None
    specials: Mapping[str, str] = field(default_factory=dict)
    table: tuple[bytes, ...] | None = None
    fallback: tuple[bytes, ...] | None = None

    @property
    def vocab(self) -> int:
        return max(self.engine.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def byte_exact(self) -> bool:
        return self.table is not None

    def encode(self, text: str) -> list[int]:
        return self.engine.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        if self.table is not None:
            return self.decode_bytes(ids).decode("utf-8", "replace")
        return self.engine.decode(list(ids), skip_special_tokens=False)

    def encode_bytes(self, data: bytes) -> list[int]:
        ids: list[int] = []
        for part in _bytes.runs(data):
            if isinstance(part, str):
                ids += self.encode(part)
            else:
                ids += [self._byte_ids()[byte] for byte in part]
        return ids

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        if self.table is None:
            return self.decode(ids).encode("utf-8")
        return b"".join(self.token_bytes(token) for token in ids)

    def token_bytes(self, token: int) -> bytes:
        if self.table is None:
            return self.engine.decode([token], skip_special_tokens=False).encode("utf-8")
        if not 0 <= token < len(self.table):
            raise ModelError(f"Tokenizer: token id must lie in [0, {len(self.table) - 1}]; got {token}.")
        return self.table[token]

    def words(self) -> tuple[bytes, ...] | None:
        rows = self.fallback if self.table is None else self.table
        if rows is None:
            return None
        special = {number for number, token in self.engine.get_added_tokens_decoder().items() if token.special}
        return tuple([b"" if number in special else row for number, row in enumerate(rows)])

    def stream(self) -> StreamDecoder:
        return _stream.ByteStream(self) if self.table is not None else _stream.TextStream(self)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        if self.template is None:
            return self.encode(_chat.plain(messages))
        return self.encode(_chat.render(self.template, messages, self.specials))

    def _byte_ids(self) -> tuple[int, ...]:
        found = _bytes.singles(self.table) if self.table is not None else None
        if found is None:
            raise ModelError(
                "Tokenizer: these bytes are not UTF-8 and this model has no token for every single byte. "
                "Use text, or a model with a byte-level tokenizer such as nib."
            )
        return found


def _download(name: str) -> Path:
    try:
        path = Path(hf_hub_download(name, "tokenizer.json"))
        for side in _SIDE_FILES:
            try:
                hf_hub_download(name, side)
            except HfHubHTTPError:
                continue
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"Model {name!r}: no such folder, and no tokenizer.json under that name on the hub ({_line(error)}). "
            "Give the path of a model folder, or a hub id such as org/name."
        ) from None
    return path.parent


def _ends(engine: tokenizers.Tokenizer, config: Mapping[str, object], folder: Path) -> tuple[int, ...]:
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        value = _json(folder / name).get("eos_token_id")
        found += [value] if isinstance(value, int) else value if isinstance(value, list) else []
    named = _named(engine, config.get("eos_token"))
    return tuple(dict.fromkeys(found + ([named] if named is not None else [])))


def _named(engine: tokenizers.Tokenizer, value: object) -> int | None:
    """The id of a token given by name, or by the record older configurations hold."""
    if isinstance(value, dict):
        value = value.get("content")
    return engine.token_to_id(value) if isinstance(value, str) else None


def _specials(config: Mapping[str, object]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            found[key] = value
    return found


def _template(config: Mapping[str, object], folder: Path) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    value = config.get("chat_template")
    if isinstance(value, list):
        value = next((row["template"] for row in value if row.get("name") == "default"), None)
    return value if isinstance(value, str) else None


def _json(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(
            f"Model {path.parent}: {path.name} is not valid JSON ({_line(error)}). Copy it again."
        ) from None
    return value if isinstance(value, dict) else {}


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
