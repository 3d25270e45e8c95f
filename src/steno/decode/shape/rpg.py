"""Repetition penalty based on grammar: what repeats is the structure of code, whatever its names and numbers are.

The paper's structural repetition: a sequence of grammar rules that follows itself at once. Lines are reduced to their
kinds of words (identifier, number and string each are one kind; keywords, operators and indentation are themselves).
Where the last whole lines are a unit of up to `unit` lines, `r` times over (r at least 2), and a line begins, tokens
that would begin the unit again lose probability by `decay` to the power r; where the unit begins with a keyword, the
end of the text gains by `boost` to the power -r.

What differs from the paper: kinds of words by line in place of a pushdown automaton's rules, so that it needs no parser
and takes code that does not parse; keywords are Python's; factors act on probabilities (on logits, which the authors'
code multiplies, a factor below 1 raises what is negative). Without ids to text there is no grammar and nothing changes.
"""

import keyword
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt

from steno.core import Card, Span

from .._text import Decoder
from ..base import About, Floats, ShaperKnob

CARD = Card(paper="Rethinking Repetition Problems of LLMs in Code Generation", task=True)

WORD = re.compile(r"""(?P<name>[^\W\d]\w*)|(?P<number>\d[\w.]*)|(?P<text>"[^"]*"?|'[^']*'?)|(?P<mark>[^\s\w])""")
LOOK_BACK = 1024
"""Tokens of the past that are looked at: what a unit repeats is near."""

Line = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Rpg(ShaperKnob):
    """The prompt's lines count, too: a text that goes on as its prompt does repeats."""

    card: ClassVar[Card] = CARD
    points = ({}, {"decay": 0.5})

    decay: Annotated[float, Span(0.01, 1.0)] = 0.9
    boost: Annotated[float, Span(0.01, 1.0)] = 0.8
    unit: Annotated[int, Span(1, 32, "lines")] = 8

    def shape(self, logits: Floats, past: Sequence[int]) -> Floats:
        return logits

    def shape_within(self, logits: Floats, past: Sequence[int], about: About) -> Floats:
        if about.text is None or not past:
            return logits
        known = _vocabulary(about.text, len(logits))
        if not known.blank[past[-1]]:
            return logits
        *lines, begun = about.text(past[-LOOK_BACK:]).split("\n")
        if begun.strip():
            return logits
        first, times = repeated([kinds(line) for line in lines if line.strip()], self.unit)
        if times < 2:
            return logits
        out = logits.copy()
        # A token may bring the last of the indentation along; short of it, or beyond, the line is another.
        again = (known.firsts == first[1]) & (known.indents + len(begun.expandtabs()) == int(first[0]))
        if not again.any():
            return logits
        out[again] += np.float32(times * math.log(self.decay))
        if keyword.iskeyword(first[1]):
            ends = [end for end in about.ends if end < len(out)]
            out[ends] -= np.float32(times * math.log(self.boost))
        return out


def kinds(line: str) -> Line:
    """A line's indentation and the kinds of its words.

    >>> kinds("    total = f(3, 'a')"), kinds("return x.y")
    (('4', 'name', '=', 'name', '(', 'number', ',', 'text', ')'), ('0', 'return', 'name', '.', 'name'))
    """
    wide = line.expandtabs()
    return (str(len(wide) - len(wide.lstrip())), *_words(line))


def repeated(lines: Sequence[Line], longest: int) -> tuple[Line, int]:
    """Of the units of up to `longest` lines the one that `lines` end with most often: (its first line, how often).

    >>> repeated([("0", "a"), ("0", "b"), ("0", "c"), ("0", "b"), ("0", "c")], 8)
    (('0', 'b'), 2)
    """
    best, first = 0, ("0",)
    for size in range(1, min(longest, len(lines)) + 1):
        times = 1
        while lines[-size * (times + 1) : -size * times or None] == lines[-size:]:
            times += 1
        if times > best:
            best, first = times, lines[-size]
    return first, best


def _words(text: str) -> list[str]:
    found = ((match.lastgroup or "", match[0]) for match in WORD.finditer(text))
    return [word if kind == "mark" or keyword.iskeyword(word) else kind for kind, word in found]


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Per token the kind of its first word ("" for white space), the spaces before it (-1000 where its line is another
    one), and whether a line may begin behind it.
    """

    firsts: "npt.NDArray[np.object_]"
    indents: "npt.NDArray[np.int64]"
    blank: list[bool]


@lru_cache(maxsize=4)
def _vocabulary(text: Decoder, size: int) -> Vocabulary:
    pieces = [text([token]) for token in range(size)]
    firsts = [next(iter(_words(piece)), "") for piece in pieces]
    spaces = [piece[: len(piece) - len(piece.lstrip())] for piece in pieces]
    return Vocabulary(
        np.array(firsts, object),
        np.array([-1000 if "\n" in space else len(space.expandtabs()) for space in spaces]),
        [not piece.rsplit("\n", 1)[-1].strip() for piece in pieces],
    )
