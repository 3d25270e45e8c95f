"""Forests that searches run: chains, and leaves beside one another."""

from collections.abc import Sequence

import numpy as np

from steno.core import PAD, ROOT, Nodes


def chain_nodes(rows: Sequence[Sequence[int]]) -> Nodes:
    """One chain per row, padded to the longest."""
    return _padded(rows, chained=True)


def leaf_nodes(rows: Sequence[Sequence[int]]) -> Nodes:
    """Per row tokens that all hang off the committed prefix, padded to the most."""
    return _padded(rows, chained=False)


def _padded(rows: Sequence[Sequence[int]], *, chained: bool) -> Nodes:
    width = max(map(len, rows))
    tokens = np.zeros((len(rows), width), np.int32)
    parents = np.full((len(rows), width), PAD, np.int32)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)] = ids
        parents[row, : len(ids)] = np.arange(ROOT, len(ids) - 1) if chained else ROOT
    return Nodes(tokens=tokens, parents=parents)


def common(one: Sequence[int], two: Sequence[int]) -> int:
    """Tokens the texts begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
