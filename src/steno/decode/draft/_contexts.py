"""Where every context occurred: a lazy trie over contexts read backwards, on a text that grows and forgets.

All suffixes of a text are one path of a trie that is read from the newest token back, so matching is one walk, and
what followed a context is read off the text itself. A node holds the places after its occurrences in order, and splits
when they are more than a few: a long repeat costs no nodes, and appending a token costs about the depth at which its
context becomes rare.
"""

from collections.abc import Sequence

BREAK = -1
"""Stands between documents; no context and no continuation reaches across it."""

FEW = 8
"""A node with more occurrences than this is split by the token before."""


class Node:
    """A context. `ends`: places after its occurrences, oldest first; `children`: by the token before, once split."""

    __slots__ = ("children", "ends")

    def __init__(self) -> None:
        self.ends: list[int] = []
        self.children: dict[int, Node] | None = None


class Contexts:
    """Contexts of up to `depth` tokens. Places count from the first token ever: text[place - base]."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.text: list[int] = []
        self.base = 0
        self.root = Node()
        self.root.children = {}

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens. A place enters the trie when the token at it is known, so the newest context is not in it."""
        text, base = self.text, self.base
        for token in tokens:
            text.append(token)
            if token != BREAK and len(text) > 1 and text[-2] != BREAK:
                self._insert(base + len(text) - 1)

    def forget(self) -> None:
        """Drop the oldest document and the break after it; what remains is as if it had never been there."""
        stop = self.text.index(BREAK)
        for i in range(1, stop):
            self._remove(self.base + i)
        del self.text[: stop + 1]
        self.base += stop + 1

    def matches(self, context: Sequence[int]) -> list[tuple[int, list[int]]]:
        """(length, places) of the ends of `context` that occurred, longest first, one per distinct set of places."""
        found: list[tuple[int, list[int]]] = []
        node = self.root
        length, longest = 0, min(len(context), self.depth)
        while length < longest and node.children is not None:
            child = node.children.get(context[-1 - length])
            if child is None:
                break
            node = child
            length += 1
            if found and len(found[-1][1]) == len(node.ends):
                found.pop()
            found.append((length, node.ends))
        if length and node.children is None and length < longest:
            self._refine(found, node.ends, context[-longest:], length)
        return found[::-1]

    def _refine(self, found: list[tuple[int, list[int]]], ends: list[int], context: Sequence[int], length: int) -> None:
        """Longer matches among the few `ends` of an unsplit node."""
        lengths = {end: self._shared(end - self.base, context, length) for end in ends}
        for longer in sorted(set(lengths.values())):
            if longer > length or len(lengths) == 1:
                same = [end for end, other in lengths.items() if other >= longer]
                if len(found[-1][1]) == len(same):
                    found.pop()
                found.append((longer, same))

    def _shared(self, i: int, context: Sequence[int], low: int) -> int:
        """How many tokens before text index `i` equal the end of `context`, of which `low` are known to."""
        text, n = self.text, len(context)
        if i >= n and text[i - n : i] == context:
            return n
        high = min(n, i)
        while low < high:
            middle = (low + high + 1) // 2
            if text[i - middle : i] == context[n - middle :]:
                low = middle
            else:
                high = middle - 1
        return low

    def _insert(self, place: int) -> None:
        text, node = self.text, self.root
        i = place - self.base - 1
        low = max(i - self.depth, -1)
        while node.children is not None:
            if i == low or text[i] == BREAK:
                return
            child = node.children.get(text[i])
            if child is None:
                child = node.children[text[i]] = Node()
            child.ends.append(place)
            node = child
            i -= 1
        if len(node.ends) > FEW:
            self._split(node, place - self.base - 1 - i)

    def _split(self, node: Node, length: int) -> None:
        """Sort the places of a node by the token before the context, which is `length` tokens long."""
        if length >= self.depth:
            return
        children: dict[int, Node] = {}
        for end in node.ends:
            i = end - self.base - 1 - length
            if i >= 0 and self.text[i] != BREAK:
                child = children.get(self.text[i])
                if child is None:
                    child = children[self.text[i]] = Node()
                child.ends.append(end)
        node.children = children
        for child in children.values():
            if len(child.ends) > FEW:
                self._split(child, length + 1)

    def _remove(self, place: int) -> None:
        """Take out the oldest place, which therefore stands first wherever it is."""
        node = self.root
        i = place - self.base - 1
        low = max(i - self.depth, -1)
        while node.children is not None and i > low and self.text[i] != BREAK:
            child = node.children[self.text[i]]
            del child.ends[0]
            if not child.ends:
                del node.children[self.text[i]]
                return
            if len(child.ends) <= FEW:
                child.children = None
                return
            node = child
            i -= 1
