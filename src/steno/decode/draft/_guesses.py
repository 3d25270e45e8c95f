"""Guesses at the tokens after the pending one, carried from step to step: what the Jacobi drafters share."""

from collections.abc import Sequence
from typing import TypeVar

from ..base import Seen

T = TypeVar("T")


def filler(ids: Sequence[int], place: int) -> int:
    """Some token of the text, for a place nothing is known of: a fixed walk over the text gives the same ones again."""
    return ids[(7 * len(ids) + 5 * place) % len(ids)]


def ran(seen: Seen, guesses: Sequence[int]) -> list[int]:
    """The nodes of the longest beginning of `guesses` that ran, the pending token first, whoever drafted them."""
    nodes = [0]
    for guess in guesses:
        below = (i for i, p in enumerate(seen.parents) if p == nodes[-1] and i and seen.tokens[i] == guess)
        node = next(below, None)
        if node is None:
            break
        nodes.append(node)
    return nodes


def moved(old: Sequence[T], fresh: Sequence[T], count: int, gained: int) -> list[T]:
    """The guesses after a step that gained `gained` tokens, counted from the new pending token.

    fresh  new guesses at the places behind those tokens, as far as the `count` nodes that ran reach
    old    the guesses so far, the first of which stood after the old pending token; what no node reached stays

    >>> moved([11, 12, 13, 14], [22, 23], 3, 1)
    [22, 23, 14]
    """
    return [*fresh, *old[max(count, gained) :]]
