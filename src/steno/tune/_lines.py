"""Examples for partial programs: every line of code in given texts, as the model would write it and as it is."""

import ast
from collections.abc import Iterator, Sequence
from itertools import accumulate

from steno.core import Model, Plan
from steno.decode import Request, generate
from steno.decode._holes import parsed, program
from steno.decode._text import borders, unmarked
from steno.measure.coverage import Example
from steno.tokens import Tokenizer

from ._likelihood import log_probs

MOST_TOKENS = 32
BEFORE = 200
"""Characters that have to stand before a line, for the model to have something to go by."""


def line_examples(model: Model, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]]) -> Iterator[Example]:
    """One per line that is a statement by itself; comments and texts alone are none."""
    for prompt in prompts:
        text = tokenizer.decode(unmarked(tokenizer.decode, prompt, model.eos))
        lines = text.splitlines(keepends=True)[:-1]
        starts = [0, *accumulate(map(len, lines))]
        for start, line in zip(starts, lines, strict=False):
            head = "if 1:\n" if line.startswith(" ") else ""
            truth = line.rstrip()
            if start >= BEFORE and _is_statement(head + truth):
                ids, logs = _greedy(model, tokenizer, text[:start])
                written = tokenizer.decode(ids)
                places = [len(head) + place for place in borders(tokenizer.decode, ids)]
                code = program(head + written, [0, *places], given=1)
                yield Example(code, tuple(logs), head + truth)


def _is_statement(source: str) -> bool:
    tree = parsed(source)
    if tree is None or not tree.body:
        return False
    last = tree.body[-1].body[-1] if isinstance(tree.body[-1], ast.If) else tree.body[-1]
    return not (isinstance(last, ast.Expr) and isinstance(last.value, ast.Constant))


def _greedy(model: Model, tokenizer: Tokenizer, before: str) -> tuple[list[int], list[float]]:
    """The line the model writes next, without its end: (ids, log-probabilities)."""
    ids = tokenizer.encode(before)
    prompt = tuple(ids if tokenizer.bos is None else [tokenizer.bos, *ids])
    asked = Request(number=0, prompt=prompt, max_tokens=MOST_TOKENS, stop=("\n",))
    (done,) = generate(model, [asked], Plan(), text=tokenizer.decode)
    kept: list[int] = []
    for token in unmarked(tokenizer.decode, done.tokens, model.eos):
        if "\n" in tokenizer.decode([token]):
            break
        kept.append(token)
    return kept, log_probs(model, prompt, kept) if kept else []
