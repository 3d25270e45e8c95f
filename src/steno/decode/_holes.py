"""Partial programs: a Python text with the least holes that bring what is left down to a cost, and what fills them.

A hole stands where an expression or a statement stood; any other may stand there. The syntax tree says which holes
there may be, so that the choice is a knapsack on a tree, solved exactly.
"""

import ast
import warnings
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

Spans = tuple[tuple[int, int], ...]


@dataclass(slots=True)
class Part:
    """A piece of syntax that may be left out: its tokens [start, end), those of its own cost, and the parts in it."""

    start: int
    end: int
    parts: "list[Part]" = field(default_factory=list["Part"])


@dataclass(frozen=True, slots=True)
class Program:
    """A prompt and a text of `tokens` tokens behind it, as code.

    source  the longest beginning of both in whole lines that parses
    places  where tokens begin and end in it, in characters
    given   tokens of the prompt, of which nothing may be left out
    size    tokens of prompt and text that the source has whole
    tokens  tokens of the text
    """

    source: str
    places: tuple[int, ...]
    given: int
    size: int
    tokens: int


def program(text: str, places: Sequence[int], given: int) -> Program:
    """The program in `text`, whose first `given` tokens are the prompt."""
    lines = text.split("\n")
    while parsed("\n".join(lines)) is None:
        lines.pop()
    source = "\n".join(lines)
    # White space behind the last line that parses belongs to it.
    end = len(text) if not text[len(source) :].strip() else len(source)
    size = sum(1 for place in places[1:] if place <= end)
    return Program(source, tuple(places), given, size, len(places) - 1 - given)


def open_spans(code: Program, logs: Sequence[float], limit: float, most: int) -> Spans:
    """The holes [start, end) in the text, whose tokens have the log-probabilities `logs`.

    All of it where no `most` of them bring -log p of the rest down to `limit`; what does not parse always.
    """
    everything = ((0, code.tokens),)
    if code.size <= code.given:
        return everything
    costs = [0.0] * code.given + [-log for log in logs]
    chosen = choose(parts(code), costs[: code.size], most, limit)
    if chosen is None:
        return everything
    kept = tuple((start - code.given, end - code.given) for start, end in chosen)
    behind = code.size - code.given
    return kept if behind == code.tokens else (*kept, (behind, code.tokens))


def covers(code: Program, spans: Spans, other: str) -> bool:
    """Whether `other`, prompt and text, is the program with something in its holes."""
    if spans == ((0, code.tokens),):
        return True
    open_ = frozenset((start + code.given, end + code.given) for start, end in spans)
    one, two = parsed(code.source), parsed(other)
    return one is not None and two is not None and _match(one, two, code, open_, _lines(code.source))


def parsed(source: str) -> ast.Module | None:
    """The tree of a source, None where it has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def parts(code: Program) -> list[Part]:
    """The outermost parts, each with those within it. A token is in a part where its last character is."""
    tree = parsed(code.source)
    return [] if tree is None else list(_inner(tree, code, _lines(code.source)))


def choose(top: Sequence[Part], costs: Sequence[float], most: int, limit: float) -> Spans | None:
    """At most `most` parts, with the fewest tokens, without which the costs [tokens] add up to `limit` at most.

    None where there are none such. Of equally small choices the cheapest remainder is taken.
    """
    sums = [0.0, *accumulate(costs)]
    loose = Part(0, len(costs), list(top))
    found = _keep(loose, sums, most)
    fits = [(size, cost, spans) for (_, size), (cost, spans) in found.items() if cost <= limit + 1e-9]
    return min(fits, key=lambda item: item[:2])[2] if fits else None


Choices = dict[tuple[int, int], tuple[float, Spans]]
"""By (holes, tokens left out): the least cost of what is left, and the holes."""


def _keep(part: Part, sums: Sequence[float], most: int) -> Choices:
    """Choices where the part itself stays."""
    own = sums[part.end] - sums[part.start] - sum(sums[p.end] - sums[p.start] for p in part.parts)
    out: Choices = {(0, 0): (own, ())}
    for inner in part.parts:
        ways = _keep(inner, sums, most)
        if most:
            ways = _better(ways, (1, inner.end - inner.start), (0.0, ((inner.start, inner.end),)))
        joined: Choices = {}
        for (holes, size), (cost, spans) in out.items():
            for (more, larger), (extra, others) in ways.items():
                if holes + more <= most:
                    joined = _better(joined, (holes + more, size + larger), (cost + extra, spans + others))
        out = joined
    return out


def _better(ways: Choices, key: tuple[int, int], way: tuple[float, Spans]) -> Choices:
    if key not in ways or way < ways[key]:
        ways[key] = way
    return ways


def _inner(node: ast.AST, code: Program, lines: Sequence[int]) -> Iterator[Part]:
    for child in ast.iter_child_nodes(node):
        span = _span(child, code, lines)
        if span is None:
            yield from _inner(child, code, lines)
        else:
            yield Part(*span, list(_inner(child, code, lines)))


def _span(node: ast.AST, code: Program, lines: Sequence[int]) -> tuple[int, int] | None:
    """The tokens of an expression or statement, None where it has none of its own or touches the prompt."""
    if not isinstance(node, ast.expr | ast.stmt) or node.end_lineno is None or node.end_col_offset is None:
        return None
    start = _place(code.source, lines, node.lineno, node.col_offset)
    end = _place(code.source, lines, node.end_lineno, node.end_col_offset)
    # places[i + 1] - 1 is token i's last character.
    first, behind = (bisect_left(code.places, place + 1) - 1 for place in (start, end))
    return (first, behind) if code.given <= first < behind else None


def _lines(source: str) -> list[int]:
    """Where lines begin."""
    return [0, *accumulate(len(line) for line in source.splitlines(keepends=True))]


def _place(source: str, lines: Sequence[int], line: int, column: int) -> int:
    """The character at a position of the tree, whose columns count bytes."""
    text = source[lines[line - 1] : lines[line]]
    return lines[line - 1] + len(text.encode()[:column].decode())


def _match(one: object, two: object, code: Program, open_: frozenset[tuple[int, int]], lines: Sequence[int]) -> bool:
    if isinstance(one, ast.AST):
        if isinstance(one, ast.expr | ast.stmt) and _span(one, code, lines) in open_:
            return isinstance(two, ast.expr if isinstance(one, ast.expr) else ast.stmt)
        if type(one) is not type(two):
            return False
        return all(_match(getattr(one, f, None), getattr(two, f, None), code, open_, lines) for f in one._fields)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(_match(a, b, code, open_, lines) for a, b in zip(one, two, strict=True))
    return one == two and type(one) is type(two)
