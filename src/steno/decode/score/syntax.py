"""Syntax as a score of the way: how much of a Python text, line by line, can still become a program.

A step-by-step judge in the sense of process reward models, for code and without a model: 1 where what is written
compiles or lacks nothing but more text; else the share of the text's lines that come before the error. The last line is
judged once it is whole. Nothing is run.
"""

import codeop
import warnings
from dataclasses import dataclass
from typing import ClassVar

from steno.core import Card

from ..base import Candidate, ScorerKnob

CARD = Card(task=True)


@dataclass(frozen=True, kw_only=True)
class Syntax(ScorerKnob):
    """The prompt's lines are not the text's fault, and not its merit."""

    card: ClassVar[Card] = CARD

    def score(self, candidate: Candidate) -> float:
        prompt, whole = candidate.read(self.name)
        given = prompt.count("\n")
        source = whole if candidate.whole else whole[: whole.rfind("\n") + 1]
        error = first_error(source)
        if error is None:
            return 1.0
        lines = source.rstrip("\n").count("\n") + 1 - given
        return max(0.0, (error - 1 - given) / max(lines, 1))


def first_error(source: str) -> int | None:
    """The line, from 1, at which a text stops being the beginning of a program; None where it does not.

    >>> first_error("def f(x):\\n    y = (x,\\n"), first_error("x = 1\\ny = = 2\\n"), first_error("x = 1\\n")
    (None, 2, None)
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            codeop.compile_command(source, "text", "exec")
        except SyntaxError as error:
            return error.lineno or 1
        except (ValueError, OverflowError, RecursionError, MemoryError):
            return 1
    return None
