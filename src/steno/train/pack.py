"""Documents -> token files.

A packed folder holds one `train-BUCKET.bin` and one `valid-BUCKET.bin` per bucket (uint16, little-endian, every
document followed by the separator) and `index.json`: token counts, and for validation each document's start and size in
bytes, so that bits per byte can be computed without the text.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from steno.core.errors import DataError
from steno.train.base import Document
from steno.train.recipe import Bucket
from steno.train.vocab import END

_CHUNK = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A validation document: where its tokens lie and how many bytes they stand for."""

    name: str
    start: int
    stop: int
    num_bytes: int


class Packed:
    """A packed folder, its token files mapped into memory and not read until used."""

    def __init__(self, folder: Path) -> None:
        try:
            index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            self.vocab: int = index["vocab"]
            self.separator: int = index["separator"]
            self.train = {n: _map(folder / f"train-{n}.bin", row["tokens"]) for n, row in index["train"].items()}
            self.valid = {n: _map(folder / f"valid-{n}.bin", row["tokens"]) for n, row in index["valid"].items()}
            self.texts = {n: [Text(**text) for text in row["texts"]] for n, row in index["valid"].items()}
            self.train_bytes = {n: int(row["bytes"]) for n, row in index["train"].items()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"Packed data {folder}: cannot be read ({error}). Pack the corpus again.") from None

    def batch(self, weights: dict[str, float], rows: int, tokens: int, seed: int, step: int) -> np.ndarray:
        """[B, T] random crops, a pure function of the seed and the step: resuming needs no sampler state."""
        rng = np.random.Generator(np.random.Philox(key=seed, counter=step << 64))
        names = [name for name in sorted(self.train) if weights.get(name, 0) > 0 and len(self.train[name]) > tokens]
        if not names:
            raise DataError(
                f"Packed data: no bucket has more than {tokens} tokens. Lower schedule.sequence or add text."
            )
        share = np.array([weights[name] for name in names])
        out = np.empty((rows, tokens), dtype=np.int64)
        for row, which in enumerate(rng.choice(len(names), size=rows, p=share / share.sum())):
            stream = self.train[names[which]]
            at = int(rng.integers(0, len(stream) - tokens + 1))
            out[row] = stream[at : at + tokens]
        return out


def pack(
    train: Iterable[Document], valid: Iterable[Document], buckets: Sequence[Bucket], tokenizer: Tokenizer, out: Path
) -> dict[str, int]:
    """Write a packed folder; return the number of training tokens by bucket."""
    out.mkdir(parents=True, exist_ok=True)
    separator = tokenizer.encode(END, add_special_tokens=False).ids[0]
    index: dict[str, object] = {"vocab": tokenizer.get_vocab_size(), "separator": separator}
    train, valid = list(train), list(valid)
    counts: dict[str, dict[str, object]] = {"train": {}, "valid": {}}
    for bucket in buckets:
        for split, documents in (("train", train), ("valid", valid)):
            own = [document for document in documents if document.bucket == bucket.name]
            if own:
                path = out / f"{split}-{bucket.name}.bin"
                counts[split][bucket.name] = _write(path, own, tokenizer, separator, texts=split == "valid")
    (out / "index.json").write_text(json.dumps(index | counts) + "\n", encoding="utf-8")
    return {name: int(row["tokens"]) for name, row in counts["train"].items()}  # type: ignore[index]


def _write(
    path: Path, documents: Sequence[Document], tokenizer: Tokenizer, separator: int, *, texts: bool
) -> dict[str, object]:
    at, size = 0, 0
    rows = []
    with open(path, "wb") as file:
        for first in range(0, len(documents), _CHUNK):
            part = documents[first : first + _CHUNK]
            for document, encoding in zip(
                part, tokenizer.encode_batch([d.text for d in part], add_special_tokens=False), strict=True
            ):
                ids = np.array([*encoding.ids, separator], dtype="<u2")
                file.write(ids.tobytes())
                num_bytes = len(document.text.encode("utf-8"))
                rows.append({"name": document.name, "start": at, "stop": at + len(ids) - 1, "num_bytes": num_bytes})
                at += len(ids)
                size += num_bytes
    found: dict[str, object] = {"tokens": at, "bytes": size}
    return found | {"texts": rows} if texts else found


def _map(path: Path, tokens: int) -> np.ndarray:
    if path.stat().st_size != 2 * tokens:
        raise DataError(
            f"Packed data {path}: {path.stat().st_size} bytes, the index says {2 * tokens}. Pack the corpus again."
        )
    return np.memmap(path, dtype="<u2", mode="r", shape=(tokens,))
