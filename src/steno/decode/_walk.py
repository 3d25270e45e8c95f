"""The walk of every acceptor that makes one choice per node: follow the child that equals it."""

from collections.abc import Callable

from steno.core import ROOT

from .base import Draft


def follow(draft: Draft, choose: Callable[[int], int]) -> tuple[list[int], int]:
    """Accepted indices and the next token, where `choose(node)` is the model's token after `node`.

    Parents come first, so one pass over the draft is enough. Of twins, children with one token, the first is taken.
    """
    path: list[int] = []
    node = ROOT
    wanted = choose(node)
    for i, (token, parent) in enumerate(zip(draft.tokens, draft.parents, strict=True)):
        if token == wanted and parent == node:
            path.append(i)
            node = i
            wanted = choose(node)
    return path, wanted
