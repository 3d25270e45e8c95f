"""The error tree. A message says who, which field, the rule, what came, and the remedy.

StenoError                 base of everything steno raises on purpose; exit code 1
|-- UserError              the request is wrong and the user can mend it; exit code 2
|   |-- KnobError          a knob's field is out of its range, or the knob is unknown
|   |-- PlanError          a plan cannot be read, or its knobs do not fit together
|   |-- ModelError         a model is missing, unsupported, damaged or does not fit
|   |-- PromptError        a prompt is empty, too long or unreadable
|   `-- OutputError        an output exists already or cannot be written
|-- MissingExtra           an optional dependency is not installed; exit code 2
|-- CapsError              a session cannot do what a method needs (trees on a recurrent model)
`-- DataError              stored data is damaged (the data's fault, never the caller's)
"""

from collections.abc import Iterable
from difflib import get_close_matches


class StenoError(Exception):
    """Base of every error steno raises on purpose."""

    exit_code = 1


class UserError(StenoError):
    """The request is wrong and the user can mend it."""

    exit_code = 2


class KnobError(UserError):
    """A knob's field is out of its range, or the knob is unknown."""


class PlanError(UserError):
    """A plan cannot be read, or its knobs do not fit together."""


class ModelError(UserError):
    """A model is missing, unsupported, damaged or does not fit."""


class PromptError(UserError):
    """A prompt is empty, too long or unreadable."""


class OutputError(UserError):
    """An output exists already or cannot be written."""


class MissingExtra(StenoError):
    """An optional dependency is not installed. The message holds the line that installs it."""

    exit_code = 2

    def __init__(self, who: str, module: str, extra: str) -> None:
        super().__init__(f"{who} needs {module}, which is not installed. Run: pip install 'steno[{extra}]'")


class CapsError(StenoError):
    """A session cannot do what a method needs."""

    exit_code = 2


class DataError(StenoError):
    """Stored data is damaged."""


def nearest(word: str, known: Iterable[str], count: int = 3) -> str:
    """The names in `known` nearest to `word`, as a phrase for an error message.

    >>> nearest("cache.snp", ["cache.snap", "cache.window", "decode.draft.suffix"], 1)
    'Did you mean cache.snap?'
    """
    pool = sorted(known)
    close = get_close_matches(word, pool, n=count, cutoff=0.4)
    if not close:
        close = pool[:count]
    return f"Did you mean {', '.join(close)}?" if close else "There are none."
