"""Ways to break the loop, the acceptors and sessions, each a pitfall that has broken an engine in the field.

Every function takes pytest's `monkeypatch` and leaves one rule broken.
"""

from dataclasses import dataclass, replace

import numpy as np

from steno.core import PAD, ROOT, Key
from steno.core.errors import CapsError
from steno.decode import _row, _view, _walk, loop
from steno.decode.accept import greedy, residual
from steno.models.table import TableModel, TableSession, TableStep


def bonus_token_kv_missing(monkeypatch):
    """P1: the last accepted token is emitted, and never enters the cache."""
    settle = loop.Loop._settle

    class Short:
        def __init__(self, inner):
            self.inner = inner

        def commit(self, paths):
            self.inner.commit([p[:-1] if len(p) > 1 else p for p in paths])

    monkeypatch.setattr(
        loop.Loop, "_settle", lambda self, session, turns, step: settle(self, Short(session), turns, step)
    )


def draft_accepted_unverified(monkeypatch):
    """P14: the first draft token is checked by nobody."""

    def follow(draft, choose):
        if not draft.tokens:
            return [], choose(ROOT)
        return [0], choose(0)

    monkeypatch.setattr(greedy, "follow", follow)


def last_bit(kind, least):
    """Forwards of `least` nodes and more, in sessions of class `kind`, get a wrong last bit in one logit per node."""

    def breakage(monkeypatch):
        forward = kind.forward

        def rounded(self, nodes, *rest):
            step = forward(self, nodes, *rest)
            if nodes.parents.shape[1] >= least:
                step.logits.view(np.uint32)[..., 0] ^= 1
            return step

        monkeypatch.setattr(kind, "forward", rounded)

    return breakage


def wrong_row(monkeypatch):
    """The acceptor of every row reads the logits of row 0."""
    aim = _view.NodeView.aim
    monkeypatch.setattr(_view.NodeView, "aim", lambda self, row, *rest: aim(self, 0, *rest))


def shaped_at_the_pending_token_only(monkeypatch):
    """P10: processors are left out where drafts are verified."""
    logits = _view.NodeView.logits

    def unshaped(self, node):
        shapers = self._shapers
        self._shapers = shapers if node < 0 else ()
        out = logits(self, node)
        self._shapers = shapers
        return out

    monkeypatch.setattr(_view.NodeView, "logits", unshaped)


def shaped_by_siblings(monkeypatch):
    """P10: the past of a node holds every node before it, siblings included."""
    monkeypatch.setattr(_view.NodeView, "_branch", lambda self, node: list(self._draft.tokens[: node + 1]))


def one_key_per_block(monkeypatch):
    """P16: all tokens of a block draw the same noise."""
    monkeypatch.setattr(
        _view.NodeView,
        "key",
        lambda self, node, purpose: Key(self._request.seed, self._request.number, len(self._ids), purpose),
    )


def noise_by_call_order(monkeypatch):
    """P16: noise comes from a stream that is consumed call by call."""
    calls = iter(range(10**9))
    monkeypatch.setattr(_view.NodeView, "key", lambda self, node, purpose: Key(0, 0, next(calls), purpose))


def end_token_only_stops_the_loop(monkeypatch):
    """P13: a block that holds an end token is kept whole."""

    def keep(self, new):
        left = self.end - len(self.ids)
        if any(token in self.ends for token in new):
            self.finish = "eos"
        elif len(new) >= left:
            self.finish = self._reason
        return min(len(new), left)

    monkeypatch.setattr(_row.Row, "_cut", keep)


def overshoot(monkeypatch):
    """P13: an accepted block may pass `max_tokens`."""

    def keep(self, new):
        if len(new) >= self.end - len(self.ids):
            self.finish = self._reason
        return len(new)

    monkeypatch.setattr(_row.Row, "_cut", keep)
    step = loop.Loop._draft

    def draft(self, session, turns):
        for turn in turns:
            turn.row.end += 2
        step(self, session, turns)
        for turn in turns:
            turn.row.end -= 2

    monkeypatch.setattr(loop.Loop, "_draft", draft)


def refilled_row_keeps_its_past(monkeypatch):
    """A row that takes the next request is not emptied."""

    def crop(self, lengths):
        pass

    monkeypatch.setattr(TableSession, "crop", crop)


def coin_of_zero_accepts(monkeypatch):
    """P12: `<=` accepts what has no probability when the coin is 0."""

    def accepts(law, draft, child, coin):
        token = draft.tokens[child]
        q = 1.0 if draft.laws is None else float(draft.laws[child, token])
        return bool(coin * q <= law[token])

    monkeypatch.setattr(residual, "accepts", accepts)


def not_renormalised(monkeypatch):
    """P11: after a rejection the law loses mass and is not brought back to 1."""

    def remainder(law, draft, child):
        rest = law.copy()
        if draft.laws is None:
            rest[draft.tokens[child]] = 0.0
        else:
            rest = np.maximum(rest - draft.laws[child], 0.0)
        return rest

    monkeypatch.setattr(residual, "remainder", remainder)


def resampled_from_the_model(monkeypatch):
    """A rejection draws from p in place of what is left of it."""
    monkeypatch.setattr(residual, "remainder", lambda law, draft, child: law)


def q_is_not_what_was_sampled_from(monkeypatch):
    """P9: sampled drafts are judged as if they had been chosen."""
    accepts = residual.accepts

    def chosen(law, draft, child, coin):
        return accepts(law, type(draft)(draft.tokens, draft.parents), child, coin)

    monkeypatch.setattr(residual, "accepts", chosen)


def laws_of_drafts_lost(monkeypatch):
    """P9: the loop drops what a draft was sampled from."""
    fit = loop.fit

    def bare(draft, **limits):
        draft = fit(draft, **limits)
        return type(draft)(draft.tokens, draft.parents, draft.scores, None, draft.source)

    monkeypatch.setattr(loop, "fit", bare)


def first_twin_walked_past(monkeypatch):
    """The walk takes a child for a child of the node it stands on, whoever its parent is."""

    def follow(draft, choose):
        path, node = [], ROOT
        wanted = choose(node)
        for i, token in enumerate(draft.tokens):
            if token == wanted:
                path.append(i)
                node = i
                wanted = choose(node)
        return path, wanted

    monkeypatch.setattr(greedy, "follow", follow)
    assert _walk.follow is not follow


class Bent(TableModel):
    """A table model whose sessions are of another class."""

    kind: type = TableSession

    def open(self, batch, capacity, cache=None):
        assert cache is None
        return self.kind(self, [[] for _ in range(batch)], min(capacity, self.context))


class IndexPositions(TableSession):
    """P5: a node's position is its index, not its depth: siblings stand one after another."""

    def forward(self, nodes, want=None):
        step = super().forward(nodes)
        out = step.logits.copy()
        for b, row in enumerate(self._last[1]):
            for w, path in enumerate(row):
                gap = w + 1 - len(path)
                out[b, w] = self.model.row(self._rows[b] + [0] * gap + list(path))
        return TableStep(out)


class SiblingsVisible(TableSession):
    """C2: a node sees every node before it."""

    def forward(self, nodes, want=None):
        step = super().forward(nodes)
        out = step.logits.copy()
        for b, row in enumerate(self._last[1]):
            for w in range(len(row)):
                out[b, w] = self.model.row(self._rows[b] + nodes.tokens[b, : w + 1].tolist())
        return TableStep(out)


class UniformOffsets(TableSession):
    """P2: after a commit every row is as much longer as the one that gained most."""

    def commit(self, paths):
        before = self.lengths
        super().commit(paths)
        most = max(after - n for after, n in zip(self.lengths, before, strict=True))
        for row, n in zip(self._rows, before, strict=True):
            row.extend([0] * (n + most - len(row)))


class UniformPositions(TableSession):
    """P2, unseen by lengths: shorter rows are computed as if they began where the longest does."""

    def forward(self, nodes, want=None):
        rows = self._rows
        longest = max(map(len, rows))
        self._rows = [[0] * (longest - len(row)) + row for row in rows]
        step = super().forward(nodes)
        self._rows = rows
        return step


class PaddingCommitted(TableSession):
    """C6: what stands beside the path enters the row."""

    def forward(self, nodes, want=None):
        self._ghost = [bool((nodes.parents[b] == PAD).any()) for b in range(len(self._rows))]
        step = super().forward(nodes)
        out = step.logits.copy()
        for b, row in enumerate(self._last[1]):
            if self._ghost[b]:
                for w, path in enumerate(row):
                    out[b, w] = self.model.row([*self._rows[b], *path, 0])
        return TableStep(out)


class ForwardLeavesTrace(TableSession):
    """C1: a forward overwrites the newest committed token."""

    def forward(self, nodes, want=None):
        step = super().forward(nodes)
        for b, row in enumerate(self._rows):
            if row and nodes.parents[b, 0] != PAD:
                row[-1] = int(nodes.tokens[b, 0]) % self.vocab
        return step


class ForkShares(TableSession):
    """C4: a fork's rows are the rows it came from."""

    def fork(self, rows):
        return ForkShares(self.model, [self._rows[r] for r in rows], self.capacity)


def session(kind):
    """A model whose sessions are `kind`."""
    return type("Broken", (Bent,), {"kind": kind})(vocab=24, seed=1)


@dataclass(frozen=True, kw_only=True)
class Halved(TableModel):
    """A table model with a cache form: sealed tokens are kept at half their value (lossy, as a quantiser is).

    `again`: the newest sealed block is encoded again at every commit, from what it was encoded to.
    """

    again: bool = False
    backend: str = "hf"

    def open(self, batch, capacity, cache=None):
        return HalvedSession(self, [[] for _ in range(batch)], min(capacity, self.context), cache)


class HalvedSession(TableSession):
    def __init__(self, model, rows, capacity, spec):
        super().__init__(model, rows, capacity)
        self.spec = spec

    @property
    def caps(self):
        return replace(super().caps, fork=False)

    def fork(self, rows):
        raise CapsError("no fork")

    def room(self):
        out = []
        for row in self._rows:
            most = 0
            while len(row) + most < self.capacity and (
                not most or not self.spec or self.spec.due(len(row) + most) == self.spec.due(len(row))
            ):
                most += 1
            out.append(most)
        return tuple(out)

    def commit(self, paths):
        super().commit(paths)
        if self.model.again and self.spec:
            for row, path in zip(self._rows, paths, strict=True):
                sealed = self.spec.due(len(row))
                if path and sealed:
                    row[sealed - 1] //= 2

    def forward(self, nodes, want=None):
        step = super().forward(nodes)
        out = step.logits.copy()
        for b, row in enumerate(self._last[1]):
            for w, path in enumerate(row):
                text = [*self._rows[b], *path]
                sealed = self.spec.due(len(text) - 1) if self.spec else 0
                out[b, w] = self.model.row([t // 2 for t in text[:sealed]] + text[sealed:])
        return TableStep(out)
