"""What is kept of a corpus: no generated files, no copies, and nothing near a held-out file."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from steno.train.base import Document

_GENERATED = re.compile(
    r"(do not edit|auto-?generated|generated (by|from|automatically)|automatically generated)", re.I
)
_MIN_LINE, _MIN_LETTERS = 16, 8


def worth_reading(document: Document) -> bool:
    """Whether a file reads like something a person wrote: not data, not minified, not generated."""
    text = document.text
    if not 200 <= len(text) <= 2_000_000 and document.bucket != "english":
        return False
    if "\x00" in text:
        return False
    if document.bucket == "english":
        return True
    if _GENERATED.search(text[:600]):
        return False
    lines = text.split("\n")
    if max(map(len, lines)) > 2000 or len(text) / len(lines) > 110:
        return False
    dense = [c for c in text[:200_000] if not c.isspace()]
    digits = sum(c.isdigit() for c in dense)
    letters = sum(c.isalpha() for c in dense)
    return digits < 0.25 * len(dense) and letters > 0.4 * len(dense)


def line_keys(text: str) -> set[int]:
    """64-bit keys of a text's lines that say something; blank lines, brackets and short statements do not."""
    keys = set()
    for raw in text.split("\n"):
        line = raw.strip()
        if len(line) >= _MIN_LINE and sum(c.isalpha() for c in line) >= _MIN_LETTERS:
            digest = hashlib.blake2b(line.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            keys.add(int.from_bytes(digest, "little"))
    return keys


class HeldOut:
    """Recognises near copies of held-out documents: more than `share` of a held-out file's lines in one file."""

    def __init__(self, documents: Sequence[Document], share: float = 0.2) -> None:
        self._share = share
        self._sizes: list[int] = []
        self._owners: dict[int, list[int]] = {}
        for number, document in enumerate(documents):
            keys = line_keys(document.text)
            self._sizes.append(max(1, len(keys)))
            for key in keys:
                self._owners.setdefault(key, []).append(number)

    def near_copy(self, keys: set[int]) -> bool:
        """Whether a file with these lines is a near copy of a held-out file, or made of pieces of held-out files."""
        hits: Counter[int] = Counter()
        shared = 0
        for key in keys:
            owners = self._owners.get(key)
            if owners:
                shared += 1
                hits.update(owners)
        if keys and shared > 0.5 * len(keys):
            return True
        return any(count > self._share * self._sizes[number] for number, count in hits.items())


def without_copies(
    documents: Iterable[Document], held_out: HeldOut, *, max_seen: float = 0.5
) -> tuple[list[Document], Counter[str]]:
    """The documents less near copies of held-out files and of documents before them, with a count per reason.

    A document is a near copy of what came before when more than `max_seen` of its lines were all seen already.
    """
    kept: list[Document] = []
    seen: set[int] = set()
    dropped: Counter[str] = Counter()
    for document in documents:
        keys = line_keys(document.text)
        if held_out.near_copy(keys):
            dropped["near a held-out file"] += 1
        elif keys and len(keys & seen) > max_seen * len(keys):
            dropped["near a file already kept"] += 1
        else:
            kept.append(document)
            seen |= keys
    return kept, dropped
