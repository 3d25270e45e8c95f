"""KV that is not computed again: rows in files, prompts that begin alike, edited texts, contexts read apart.

`write_row` and `read_row` store a row; `Remembering` is a model that skips what a `PrefixCache` knows. A method of the
room weaves a row from pieces of text, some of which are known: see `base`.
"""

from ._prefix import PrefixCache, Stats
from ._remember import Remembering, RememberingSession
from ._store import pack, read_row, unpack, write_row
from .base import Piece, ReuseKnob, Scene, Woven

__all__ = [
    "Piece",
    "PrefixCache",
    "Remembering",
    "RememberingSession",
    "ReuseKnob",
    "Scene",
    "Stats",
    "Woven",
    "pack",
    "read_row",
    "unpack",
    "write_row",
]
