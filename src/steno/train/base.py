"""The records every file of this room shares.

A *source* is a place text comes from; a *bucket* is a kind of text that the sampler weighs (`stdlib`, `packages`,
`tests`, `docs`, `english`); a *document* is one file. Splits are made by document, before anything else.

Shape legend of the room: B rows of a batch, T tokens of a row, V vocabulary, M model width.
"""

from dataclasses import dataclass

from steno.core.errors import StenoError, UserError


class RecipeError(UserError):
    """A training recipe cannot be read, or one of its fields is out of range."""


class CheckpointError(UserError):
    """A training checkpoint is missing, damaged or belongs to another recipe."""


class Interrupted(StenoError):
    """Training was stopped by Ctrl-C after its state was saved; exit code 130."""

    exit_code = 130


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One file of text, with where it came from."""

    source: str
    path: str
    bucket: str
    licence: str
    text: str

    @property
    def name(self) -> str:
        """A name that is unique in a corpus and does not depend on the machine."""
        return f"{self.source}/{self.path}"
