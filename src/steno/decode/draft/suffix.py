"""SuffixDecoding: draft what most often followed the longest ends of the text, here and in earlier outputs.

Two indexes: one of the request's prompt and output, one of the outputs of finished requests, the oldest of which are
dropped. For every end of the text that occurred before, a draft of up to alpha * (its length) + offset tokens is grown
greedily by the product of the counts' ratios; the draft with the largest sum of these probabilities is proposed.

What differs from the paper: the suffix trees are tries over contexts read backwards (`_contexts`), which give the same
counts; counts look at the newest 64 occurrences, which bounds the work of a step; ends that occurred at the same
places are tried once, with the longest; the scores handed to the loop trust a short match less than a long one.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Annotated, ClassVar

from steno.core import ROOT, Card, Span

from ..base import Draft, Drafter, DrafterKnob, Request, Seen
from ._contexts import BREAK, Contexts

CARD = Card(
    paper="SuffixDecoding: Extreme Speculative Decoding for Emerging AI Applications",
    keeps="bits",
    breaks=("decode.draft", "decode.search"),
)

NEWEST = 64


@dataclass(frozen=True, kw_only=True)
class Suffix(DrafterKnob):
    """`tree` drafts a tree in place of its best path; `max_requests` outputs are remembered, 0 for none.

    `alpha` is generous, because the loop keeps of a draft what pays.
    """

    card: ClassVar[Card] = CARD

    max_depth: Annotated[int, Span(1, 256, "tokens")] = 64
    num_tokens: Annotated[int, Span(1, 255, "tokens")] = 64
    alpha: Annotated[float, Span(0.0, 16.0)] = 4.0
    offset: Annotated[int, Span(0, 64, "tokens")] = 0
    min_prob: Annotated[float, Span(0.0, 1.0)] = 0.1
    max_requests: Annotated[int, Span(0, 100_000, "requests")] = 512
    tree: bool = False

    def open(self, rows: int, vocab: int) -> Drafter:
        return _Suffix(self, rows)


class _Suffix:
    """`own[row]` indexes the row's prompt and output, `past` the outputs of finished requests."""

    top = 0
    laws = False

    def __init__(self, knob: Suffix, rows: int) -> None:
        self.knob = knob
        self.own = [Contexts(knob.max_depth) for _ in range(rows)]
        self.past = Contexts(knob.max_depth)
        self.prompts = [0] * rows
        self.remembered: deque[int] = deque()

    def start(self, row: int, request: Request) -> None:
        self.own[row] = Contexts(self.knob.max_depth)
        self.own[row].extend(request.prompt)
        self.prompts[row] = len(request.prompt)

    def propose(self, row: int, ids: Sequence[int], budget: int, ahead: Sequence[int] = ()) -> Draft:
        knob, own = self.knob, self.own[row]
        own.extend(ids[len(own.text) :])
        context = [*ids[-knob.max_depth :], *ahead][-knob.max_depth :]
        most = min(budget, knob.num_tokens)
        best, found, score = 0, None, 0.0
        for index in (own, self.past):
            for length, ends in index.matches(context):
                limit = min(most, int(knob.alpha * length) + knob.offset)
                # Probabilities are at most 1, and shorter matches may draft less: nothing below can win.
                if limit <= score:
                    break
                grown = grow(index, ends, limit, knob.min_prob, knob.tree)
                total = sum(grown[2])
                if total > score:
                    best, found, score = length, (index, grown), total
        if found is None:
            return Draft()
        index, (tokens, parents, probs) = found
        return Draft(tokens, parents, _trusted(parents, probs, best), None, "suffix" if index is own else "suffix.past")

    def observe(self, row: int, seen: Seen) -> None:
        pass

    def finish(self, row: int, ids: Sequence[int]) -> None:
        output = ids[self.prompts[row] :]
        if not self.knob.max_requests or not output:
            return
        self.past.extend([*output, BREAK])
        self.remembered.append(len(output))
        if len(self.remembered) > self.knob.max_requests:
            self.remembered.popleft()
            self.past.forget()


Grown = tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]


def grow(index: Contexts, ends: Sequence[int], limit: int, min_prob: float, tree: bool) -> Grown:
    """Tokens, parents and probabilities of at most `limit` nodes, most probable first, that followed `ends`."""
    text = index.text
    at = [end - index.base for end in ends[-NEWEST:]]
    tokens: list[int] = []
    parents: list[int] = []
    probs: list[float] = []
    # Probability, then age: the heap never compares places, and equals come out in the order found.
    heap: list[tuple[float, int, int, int, list[int]]] = []
    serial = 0
    parent, prob = ROOT, 1.0
    while True:
        run = _agreed(text, at, limit - len(tokens))
        if run:
            # Nothing in the heap is more probable than what follows for certain.
            first = len(tokens)
            tokens += run
            parents += [parent, *range(first, len(tokens) - 1)]
            probs += [prob] * len(run)
            parent = len(tokens) - 1
            at = [i + len(run) for i in at]
        if len(tokens) == limit:
            break
        groups: dict[int, list[int]] = {}
        # Newest first: of equal counts the newest token is taken.
        for i in reversed(at):
            if i < len(text) and text[i] != BREAK:
                groups.setdefault(text[i], []).append(i + 1)
        total = sum(map(len, groups.values()))
        for token in groups if tree else sorted(groups, key=lambda token: -len(groups[token]))[:1]:
            share = prob * len(groups[token]) / total
            if share >= min_prob:
                heappush(heap, (-share, serial, token, parent, groups[token]))
                serial += 1
        if not heap:
            break
        negative, _, token, above, places = heappop(heap)
        parent, prob = len(tokens), -negative
        tokens.append(token)
        parents.append(above)
        probs.append(prob)
        at = places[::-1]
    return tuple(tokens), tuple(parents), tuple(probs)


def _agreed(text: list[int], at: Sequence[int], most: int) -> list[int]:
    """The tokens, at most `most`, that follow all places alike; a place at the end of the text agrees with all."""
    run = text[at[0] : at[0] + most] if at else []
    for i in at:
        here = text[i : i + len(run)]
        if here != run[: len(here)] or BREAK in here:
            pairs = zip(run, here, strict=False)
            run = run[: next(n for n, (one, other) in enumerate(pairs) if one != other or one == BREAK)]
            if not run:
                break
    return run


def _trusted(parents: Sequence[int], probs: Sequence[float], length: int) -> tuple[float, ...]:
    """Probabilities times 1 - 1/(2n) per token, n being the length of the match it continues."""
    out: list[float] = []
    trust: list[tuple[float, int]] = []
    for parent, prob in zip(parents, probs, strict=True):
        above, n = trust[parent] if parent >= 0 else (1.0, length)
        trust.append((above * (1 - 0.5 / n), n + 1))
        out.append(prob * trust[-1][0])
    return tuple(out)
