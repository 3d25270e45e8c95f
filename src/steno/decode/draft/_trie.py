"""A draft tree as it grows: paths that begin alike share nodes."""

from steno.core import ROOT

from ..base import Draft


class Trie:
    """Nodes in the order they came, parents first. A node that comes again keeps the better of its scores."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.scores: list[float] = []
        self._known: dict[tuple[int, int], int] = {}

    def add(self, parent: int, token: int, score: float) -> int:
        """The node for `token` below `parent` (ROOT: the pending token)."""
        node = self._known.setdefault((parent, token), len(self.tokens))
        if node == len(self.tokens):
            self.tokens.append(token)
            self.parents.append(parent)
            self.scores.append(score)
        else:
            self.scores[node] = max(self.scores[node], score)
        return node

    def path(self, node: int) -> list[int]:
        """Tokens from the root down to `node`."""
        out: list[int] = []
        while node != ROOT:
            out.append(self.tokens[node])
            node = self.parents[node]
        return out[::-1]

    def draft(self, source: str, kept: int = 0) -> Draft:
        """The tree as a draft."""
        return Draft(tuple(self.tokens), tuple(self.parents), tuple(self.scores), None, source, kept)
