"""Checks of the session's contract (C1 to C7) on the user's own model and cache form.

Ragged rows are compared with the same session fed one token at a time, or with a fresh session of one row: rounding
between sessions of different size is allowed for, bits are compared within one session where its caps promise them.
"""

from collections.abc import Sequence

import numpy as np

from steno.core import PAD, ROOT, Keeps, Session

from ._lab import Broken, Floats, Forest, Found, Lab, Skip, chain, forest, lineage, same

SHAPE = (ROOT, 0, 0, 1, 1, 2, 3)
"""Siblings at two depths; the deepest path is 0, 1, 3, 6."""

LENGTHS = (9, 1, 21)


def _texts(lab: Lab) -> list[list[int]]:
    most = max(2, lab.capacity - 12)
    return [lab.ids(min(n, most), 1, b) for b, n in enumerate(LENGTHS)]


def _ragged(lab: Lab) -> tuple[Session, list[list[int]]]:
    texts = _texts(lab)
    session = lab.open(len(texts))
    session.prefill(texts)
    return session, texts


def _shape(session: Session) -> list[int]:
    """SHAPE as far as caps and room allow, or a chain."""
    parents = list(SHAPE) if session.caps.tree else [ROOT, 0, 1, 2]
    deep = [len(lineage(parents, i)) for i in range(len(parents))]
    fits = [up for up, d in zip(parents, deep, strict=True) if d <= min(session.room())]
    return fits[: session.caps.max_width]


def _after(lab: Lab, ids: Sequence[int]) -> Floats:
    """Logits [V] after `ids`: a fresh row, prefilled, and one node."""
    session = lab.open()
    session.prefill([list(ids[:-1])])
    return np.array(session.forward(forest([chain(ids[-1:])])).logits[0, 0])


def _rows(lab: Lab, parents: list[int], salt: int) -> list[Forest]:
    return [(lab.ids(len(parents), salt, b), parents) for b in range(len(LENGTHS))]


def c1(lab: Lab) -> Found:
    """A forward changes nothing: lengths stay, and the same forest gives the same bits after another one."""
    session, texts = _ragged(lab)
    parents = _shape(session)
    rows = _rows(lab, parents, 2)
    first = np.array(session.forward(forest(rows)).logits)
    session.forward(forest(_rows(lab, parents, 3)))
    again = np.array(session.forward(forest(rows)).logits)
    if session.lengths != tuple(map(len, texts)):
        raise Broken(f"lengths went from {tuple(map(len, texts))} to {session.lengths} without a commit")
    for b in range(len(texts)):
        same(again[b], first[b], Keeps.BITS, f"row {b}, after another forward")
    return Found(cases=first.shape[0] * first.shape[1])


def c2(lab: Lab) -> Found:
    """A node depends on its ancestors and its depth alone: siblings are invisible, and share a position."""
    session, texts = _ragged(lab)
    if not session.caps.tree:
        raise Skip("this session runs chains only")
    parents = _shape(session)
    rows = _rows(lab, parents, 4)
    logits = np.array(session.forward(forest(rows)).logits)
    apart = 0.0
    for b, text in enumerate(texts):
        for node in range(len(parents)):
            path = [rows[b][0][i] for i in lineage(parents, node)]
            apart = max(apart, same(logits[b, node], _after(lab, text + path), Keeps.NEAR, f"row {b}, node {node}"))
    last = len(parents) - 1
    other = [([*tokens[:-1], (tokens[-1] + 1) % session.vocab], up) for tokens, up in rows]
    swapped = np.array(session.forward(forest(other)).logits)
    for b in range(len(texts)):
        for node in range(last):
            same(swapped[b, node], logits[b, node], session.caps.tree_exact, f"row {b}, node {node}, new sibling")
    return Found(cases=2 * logits.shape[0] * logits.shape[1], numbers={"max_difference": apart})


def c3(lab: Lab) -> Found:
    """Committing a path is the same as prefilling its tokens, row by row, with rows of unequal gain."""
    session, texts = _ragged(lab)
    rng = np.random.default_rng([lab.seeds[0], 5])
    apart, cases = 0.0, 0
    for turn in range(4):
        parents = _shape(session)
        rows = _rows(lab, parents, 10 + turn)
        session.forward(forest(rows))
        # Every row gains another number of tokens, one of them none; deep paths, off the first branch, too.
        paths = [lineage(parents, int(rng.integers(len(parents)))) if b != turn % 3 else [] for b in range(3)]
        session.commit(paths)
        texts = [t + [rows[b][0][i] for i in paths[b]] for b, t in enumerate(texts)]
        if session.lengths != tuple(map(len, texts)):
            raise Broken(f"after committing {paths} lengths are {session.lengths}, not {tuple(map(len, texts))}")
        logits = session.forward(forest([chain([5 % session.vocab])] * 3)).logits
        for b, text in enumerate(texts):
            want = _after(lab, [*text, 5 % session.vocab])
            apart = max(apart, same(np.array(logits[b, 0]), want, Keeps.NEAR, f"commit {turn + 1}, row {b}"))
            cases += 1
        if min(lab.capacity - len(t) for t in texts) < 6:
            break
    return Found(cases=cases, numbers={"max_difference": apart})


def c4(lab: Lab) -> Found:
    """The rows of a fork go their own ways, and the session forked from does not notice."""
    session, texts = _ragged(lab)
    if not session.caps.fork:
        raise Skip("this session cannot fork")
    twin = session.fork([2, 0, 2])
    grown = [list(texts[r]) for r in (2, 0, 2)]
    for turn in range(2):
        new = lab.ids(3, 20, turn)
        twin.forward(forest([chain([t]) for t in new]))
        twin.commit([[0]] * 3)
        grown = [[*t, n] for t, n in zip(grown, new, strict=True)]
    session.forward(forest([chain([1])] * 3))
    session.commit([[0], [], [0]])
    own = [[*texts[0], 1], texts[1], [*texts[2], 1]]
    for name, one, words in (("fork", twin, grown), ("origin", session, own)):
        logits = np.array(one.forward(forest([chain([3 % session.vocab])] * 3)).logits)
        for b, text in enumerate(words):
            same(logits[b, 0], _after(lab, [*text, 3 % session.vocab]), Keeps.NEAR, f"{name}, row {b}")
    return Found(cases=6)


def c6(lab: Lab) -> Found:
    """Padding nodes and rows without nodes are inert, whatever their tokens say."""
    session, texts = _ragged(lab)
    parents = _shape(session)
    tokens = lab.ids(len(parents), 30)
    rows: list[Forest] = [(tokens, parents), ([], []), (tokens[:1], parents[:1])]
    narrow = np.array(session.forward(forest(rows)).logits)
    nodes = forest(rows, min(session.caps.max_width, len(parents) + 5))
    nodes.tokens[nodes.parents == PAD] = 2**31 - 1
    wide = np.array(session.forward(nodes).logits)
    exact = session.caps.tree_exact if session.caps.tree else session.caps.chain_exact
    for b, count in ((0, len(parents)), (2, 1)):
        for node in range(count):
            same(wide[b, node], narrow[b, node], exact, f"row {b}, node {node}, beside padding")
    session.commit([lineage(parents, len(parents) - 1), [], []])
    logits = np.array(session.forward(forest([([], []), chain([5 % session.vocab]), ([], [])])).logits)
    same(logits[1, 0], _after(lab, [*texts[1], 5 % session.vocab]), Keeps.NEAR, "row 1, after idling")
    return Found(cases=len(parents) + 2)


def order(lab: Lab) -> Found:
    """Rows are independent: permuted, they give the same logits, and each the same as alone."""
    session, texts = _ragged(lab)
    parents = _shape(session)
    rows = _rows(lab, parents, 40)
    logits = np.array(session.forward(forest(rows)).logits)
    turn = [2, 0, 1]
    other = lab.open(3)
    other.prefill([texts[b] for b in turn])
    turned = np.array(other.forward(forest([rows[b] for b in turn])).logits)
    apart = 0.0
    for place, b in enumerate(turn):
        alone = lab.open()
        alone.prefill([texts[b]])
        single = np.array(alone.forward(forest([rows[b]])).logits[0])
        for node in range(len(parents)):
            where = f"row {b}, node {node}"
            apart = max(apart, same(turned[place, node], logits[b, node], Keeps.NEAR, f"{where}, rows permuted"))
            apart = max(apart, same(logits[b, node], single[node], Keeps.NEAR, f"{where}, beside other rows"))
    return Found(cases=2 * 3 * len(parents), numbers={"max_difference": apart})


CHECKS = {
    "session.forward": c1,
    "session.siblings": c2,
    "session.commit": c3,
    "session.fork": c4,
    "session.padding": c6,
    "session.rows": order,
}
