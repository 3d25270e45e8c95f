"""Fitting a draft to what the step can carry; what is left is well formed whatever the drafter did."""

from functools import lru_cache
from itertools import count
from operator import lt

from steno.core import ROOT

from .base import Draft

CAUTIOUS = 0.7
"""Acceptance per token assumed of a drafter that gives no scores."""


def fit(draft: Draft, *, vocab: int, width: int, depth: int, tree: bool) -> Draft:
    """`draft` without ids outside the vocabulary (nor what hangs off them), at most `width` nodes and `depth` deep.

    Where the session has no trees, the path with the best scores stays.
    """
    if draft.branches:
        if len(draft.tokens) <= width and _whole(draft, vocab, depth) and tree:
            return draft
        sound = keep(draft, _sound(draft, vocab, width if tree else len(draft.tokens), depth))
        return sound if tree or not sound.branches else keep(sound, best_path(sound)[:width])
    size = min(len(draft.tokens), width, depth)
    if size <= 0:
        return EMPTY
    tokens = draft.tokens[:size]
    if min(tokens) < 0 or max(tokens) >= vocab:
        size = next(i for i, token in enumerate(tokens) if not 0 <= token < vocab)
    return draft if size == len(draft.tokens) else keep(draft, range(size))


EMPTY = Draft()


def keep(draft: Draft, chosen: "range | list[int]") -> Draft:
    """The draft's nodes `chosen`, ascending and closed under parents."""
    if not chosen:
        return EMPTY
    if isinstance(chosen, range):
        size = len(chosen)
        laws = None if draft.laws is None else draft.laws[:size]
        kept = min(draft.kept, size)
        return Draft(draft.tokens[:size], draft.parents[:size], draft.scores[:size], laws, draft.source, kept)
    place = {old: new for new, old in enumerate(chosen)}
    place[ROOT] = ROOT
    return Draft(
        tuple([draft.tokens[i] for i in chosen]),
        tuple([place[draft.parents[i]] for i in chosen]),
        tuple([draft.scores[i] for i in chosen]) if len(draft.scores) == len(draft.tokens) else (),
        None if draft.laws is None else draft.laws[chosen],
        draft.source,
        sum(i < draft.kept for i in chosen),
    )


@lru_cache(maxsize=1024)
def depths(parents: tuple[int, ...]) -> tuple[int, ...]:
    """Depth per node; 0 hangs off the pending token."""
    out: list[int] = []
    for parent in parents:
        out.append(0 if parent < 0 else out[parent] + 1)
    return tuple(out)


def scores(draft: Draft) -> tuple[float, ...]:
    """The draft's scores, or cautious ones by depth."""
    if len(draft.scores) == len(draft.tokens):
        return draft.scores
    return tuple([CAUTIOUS ** (d + 1) for d in depths(draft.parents)])


def _whole(draft: Draft, vocab: int, depth: int) -> bool:
    """Whether nothing of a draft has to go: the common case, found without a loop."""
    orderly = all(map(lt, draft.parents, count())) and min(draft.parents) >= ROOT
    return orderly and min(draft.tokens) >= 0 and max(draft.tokens) < vocab and max(depths(draft.parents)) < depth


def _sound(draft: Draft, vocab: int, width: int, depth: int) -> list[int]:
    """Nodes inside the vocabulary, the depth and the width whose ancestors are, too."""
    level = {ROOT: -1}
    for i, (token, parent) in enumerate(zip(draft.tokens, draft.parents, strict=True)):
        if len(level) > width:
            break
        if 0 <= token < vocab and parent in level and level[parent] + 1 < depth:
            level[i] = level[parent] + 1
    return [i for i in level if i != ROOT]


def best_path(draft: Draft) -> list[int]:
    """The path with the largest sum of scores: the most tokens to be expected.

    Sampled drafts are cut by shape alone, first child by first child: choosing among them by what was sampled would
    bend the law they were sampled from.
    """
    if draft.laws is not None:
        first: list[int] = []
        for i, parent in enumerate(draft.parents):
            if parent == (first[-1] if first else ROOT):
                first.append(i)
        return first
    sums: list[float] = []
    for score, parent in zip(scores(draft), draft.parents, strict=True):
        sums.append(score + (sums[parent] if parent >= 0 else 0.0))
    node = max(range(len(sums)), key=lambda i: (sums[i], -i))
    path: list[int] = []
    while node != ROOT:
        path.append(node)
        node = draft.parents[node]
    return path[::-1]
