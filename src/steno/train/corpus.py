"""From a recipe's sources to a corpus: documents split by file, cleaned, counted, and a manifest for the model card.

The split comes first: held-out files are chosen by the hash of their name alone, then every training file near one of
them is dropped, then near copies among the training files, then what is over a bucket's cap (again by hash of name).
A corpus is a folder: `documents.jsonl` (one document per line, with its split) and `manifest.json`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from steno.train._clean import HeldOut, without_copies, worth_reading
from steno.train.base import Document, RecipeError
from steno.train.recipe import Bucket, Source
from steno.train.sources import read


class Sources(Protocol):
    """What of a recipe decides a corpus."""

    @property
    def name(self) -> str: ...

    @property
    def source(self) -> tuple[Source, ...]: ...

    @property
    def bucket(self) -> tuple[Bucket, ...]: ...


def build(recipe: Sources, out: Path) -> dict[str, object]:
    """Gather, split and clean; write the corpus folder; return its manifest."""
    documents: list[Document] = []
    licences: dict[str, str] = {}
    missing: list[str] = []
    only_valid: set[str] = set()
    for source in recipe.source:
        found, parts = read(source)
        if not found:
            missing.append(source.name)
        if source.held_out:
            only_valid |= {document.name for document in found}
        documents += found
        licences |= parts
    if not documents:
        raise RecipeError(f"Recipe {recipe.name!r}: none of its sources was found; {', '.join(missing)} are missing.")
    documents = [document for document in documents if worth_reading(document)]
    held = [d for b in recipe.bucket for d in hold_out(documents, b)] + [d for d in documents if d.name in only_valid]
    names = {document.name for document in held}
    train, dropped = without_copies((d for d in documents if d.name not in names), HeldOut(held))
    kept = [document for bucket in recipe.bucket for document in _capped(train, bucket)]
    dropped["over the cap of its bucket"] = len(train) - len(kept)
    manifest = _manifest(recipe, kept, held, licences, missing, dropped)
    _write(out, kept, held, manifest)
    return manifest


def hold_out(documents: Sequence[Document], bucket: Bucket) -> list[Document]:
    """A bucket's held-out files: in the order of their names' hashes, until there are enough files and bytes."""
    chosen: list[Document] = []
    size = 0
    pool = [d for d in documents if d.bucket == bucket.name and len(d.text) >= bucket.hold_out_min_file]
    for document in sorted(pool, key=_order):
        if len(chosen) >= bucket.hold_out_files and size >= bucket.hold_out_bytes:
            break
        chosen.append(document)
        size += _size(document)
    return chosen


def load(folder: Path, split: str) -> Iterator[Document]:
    """The documents of one split (`train` or `valid`) of a corpus folder, in a fixed order."""
    with open(folder / "documents.jsonl", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row.pop("split") == split:
                yield Document(**row)


def _capped(documents: Sequence[Document], bucket: Bucket) -> list[Document]:
    """A bucket's documents in hash order, each source and the bucket as a whole within their caps."""
    kept: list[Document] = []
    total = 0
    by_source: Counter[str] = Counter()
    for document in sorted((d for d in documents if d.bucket == bucket.name), key=_order):
        size = _size(document)
        fits = by_source[document.source] + size <= bucket.source_cap_mb * 1e6 and total + size <= bucket.cap_mb * 1e6
        if fits:
            kept.append(document)
            total += size
            by_source[document.source] += size
    return kept


def _order(document: Document) -> str:
    return hashlib.sha256(document.name.encode()).hexdigest()


def _size(document: Document) -> int:
    return len(document.text.encode("utf-8", "surrogatepass"))


def _manifest(  # noqa: PLR0917
    recipe: Sources,
    train: Sequence[Document],
    held: Sequence[Document],
    licences: dict[str, str],
    missing: list[str],
    dropped: Counter[str],
) -> dict[str, object]:
    rows: dict[tuple[str, str], list[int]] = {}
    for document in train:
        row = rows.setdefault((document.source, document.bucket), [0, 0])
        row[0] += 1
        row[1] += _size(document)
    return {
        "recipe": recipe.name,
        "sources": [
            {"source": source, "bucket": bucket, "licence": licences.get(source, ""), "files": row[0], "bytes": row[1]}
            for (source, bucket), row in sorted(rows.items())
        ],
        "buckets": {
            b.name: {
                "weight": b.weight,
                "files": sum(d.bucket == b.name for d in train),
                "bytes": sum(_size(d) for d in train if d.bucket == b.name),
                "held_out_files": sum(d.bucket == b.name for d in held),
                "held_out_bytes": sum(_size(d) for d in held if d.bucket == b.name),
            }
            for b in recipe.bucket
        },
        "held_out": [{"name": d.name, "bucket": d.bucket, "bytes": _size(d)} for d in held],
        "missing_sources": missing,
        "dropped_files": dict(dropped),
    }


def _write(out: Path, train: Sequence[Document], held: Sequence[Document], manifest: dict[str, object]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "documents.jsonl", "w", encoding="utf-8") as lines:
        for split, documents in (("valid", held), ("train", train)):
            for d in documents:
                row = {"source": d.source, "path": d.path, "bucket": d.bucket, "licence": d.licence, "text": d.text}
                lines.write(json.dumps(row | {"split": split}) + "\n")
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
