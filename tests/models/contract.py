"""The Session contract, C1 to C7 and its edges, as checks that run over any model.

    from contract import CHECKS, Subject

    @pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
    def test_contract(check):
        check(Subject(model))

A check compares a session with a *fresh one-row session of the same model* that was given the ids by `prefill`: that is
the naive reference. Numbers have to agree to `atol`, and bit for bit where the session's caps promise it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from steno.core import PAD, ROOT, Keeps, Model, Nodes, Session, Want
from steno.core.errors import CapsError, PromptError
from steno.core.tier import CacheSpec
from steno.measure._lab import Forest, chain, forest

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

LENGTHS = (9, 1, 21)
"""Committed tokens of the rows of a ragged batch."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model under test. `atol` bounds differences where bits are not promised; `cache` is the form to open with."""

    model: Model
    atol: float = 1e-4
    capacity: int = 64
    cache: CacheSpec | None = None
    seed: int = 0

    def open(self, batch: int = 1) -> Session:
        return self.model.open(batch, self.capacity, self.cache)

    def ids(self, count: int, salt: int = 0) -> list[int]:
        """`count` token ids; another `salt`, other ids."""
        rng = np.random.default_rng([self.seed, salt])
        return [int(i) for i in rng.integers(0, self.model.vocab, count)]

    def prompts(self) -> list[list[int]]:
        return [self.ids(n, salt) for salt, n in enumerate(LENGTHS)]

    def after(self, ids: Sequence[int]) -> Floats:
        """Logits [V] after `ids`, by the plainest way there is."""
        out = self.open().prefill([list(ids)], last=True)
        assert out is not None
        return np.array(out[0])

    def ragged(self) -> Session:
        session = self.open(len(LENGTHS))
        session.prefill(self.prompts())
        return session

    def same(self, got: Floats, want: Floats, keeps: Keeps = Keeps.NEAR) -> None:
        """Equal to `atol`; bit for bit where `keeps` is bits."""
        if keeps is Keeps.BITS:
            np.testing.assert_array_equal(got, want)
        else:
            np.testing.assert_allclose(got, want, atol=self.atol, rtol=0)


def chains(*rows: Sequence[int]) -> Nodes:
    return forest([chain(row) for row in rows])


IDLE: Forest = ([], [])
"""A row without nodes."""

SHAPE = (ROOT, 0, 0, 1, 1, 2, 3)
"""Parents of a tree with siblings at two depths; its deepest path is 0, 1, 3, 6."""


def shape(session: Session) -> list[int]:
    """SHAPE cut to what the session's caps and room allow: a prefix of it, or a chain where trees cannot be."""
    parents = list(SHAPE) if session.caps.tree else [ROOT, 0, 1, 2]
    depth: list[int] = []
    for up in parents:
        depth.append(0 if up == ROOT else depth[up] + 1)
    return [up for up, d in zip(parents, depth, strict=True) if d < min(session.room())][: session.caps.max_width]


def lineage(parents: Sequence[int], node: int) -> list[int]:
    """The path root to `node`."""
    path = [node]
    while parents[path[-1]] != ROOT:
        path.append(parents[path[-1]])
    return path[::-1]


def c1_forward_changes_nothing(subject: Subject) -> None:
    session = subject.ragged()
    parents = shape(session)
    rows = [(subject.ids(len(parents), 10 + b), parents) for b in range(3)]
    first = np.array(session.forward(forest(rows)).logits)
    lengths = session.lengths
    other = [(subject.ids(len(parents), 20 + b), parents) for b in range(3)]
    second = np.array(session.forward(forest(other)).logits)
    assert not np.array_equal(first, second), "the forward ignores its tokens"
    again = np.array(session.forward(forest(rows)).logits)
    assert session.lengths == lengths == LENGTHS
    np.testing.assert_array_equal(again, first)


def c2_siblings_are_invisible(subject: Subject) -> None:
    session = subject.ragged()
    parents = shape(session)
    tokens = [subject.ids(len(parents), 10 + b) for b in range(3)]
    logits = np.array(session.forward(forest([(t, parents) for t in tokens])).logits)
    keeps = session.caps.tree_exact
    for b, prompt in enumerate(subject.prompts()):
        for node in range(len(parents)):
            path = lineage(parents, node)
            alone = subject.open()
            alone.prefill([prompt])
            want = alone.forward(chains([tokens[b][i] for i in path])).logits[0, len(path) - 1]
            # Bits are promised within one session, so a one-row session is near only where shapes matter.
            subject.same(logits[b, node], want, Keeps.NEAR)
    leaf = len(parents) - 1
    swapped = [[*t[:-1], (t[-1] + 1) % session.vocab] for t in tokens]
    other = np.array(session.forward(forest([(t, parents) for t in swapped])).logits)
    for node in range(leaf):
        subject.same(other[:, node], logits[:, node], keeps)


def c3_commit_is_prefill(subject: Subject) -> None:
    session = subject.ragged()
    rng = np.random.default_rng([subject.seed, 3])
    texts = subject.prompts()
    for step in range(6):
        parents = shape(session)
        tokens = [subject.ids(len(parents), 100 * step + b) for b in range(3)]
        session.forward(forest([(t, parents) for t in tokens]))
        paths = [lineage(parents, int(rng.integers(len(parents)))) if rng.random() < 0.8 else [] for _ in range(3)]
        session.commit(paths)
        for b, path in enumerate(paths):
            texts[b] = texts[b] + [tokens[b][i] for i in path]
        assert session.lengths == tuple(map(len, texts))
    probe = subject.ids(3, 7)
    logits = session.forward(chains(*([p] for p in probe))).logits
    for b in range(3):
        subject.same(logits[b, 0], subject.after([*texts[b], probe[b]]))


def c4_fork_rows_are_independent(subject: Subject) -> None:
    session = subject.ragged()
    if not session.caps.fork:
        with pytest.raises(CapsError):
            session.fork([0])
        return
    rows = [2, 0, 2]
    twin = session.fork(rows)
    assert twin.lengths == tuple(LENGTHS[r] for r in rows)
    texts = [list(subject.prompts()[r]) for r in rows]
    for step in range(3):
        tokens = subject.ids(3, 40 + step)
        twin.forward(chains(*([t] for t in tokens)))
        twin.commit([[0], [0], [0]])
        texts = [[*text, token] for text, token in zip(texts, tokens, strict=True)]
    session.forward(chains([1], [2], [3]))
    session.commit([[0], [], [0]])
    own = [[*p, *t] for p, t in zip(subject.prompts(), ([1], [], [3]), strict=True)]
    for one, words in ((twin, texts), (session, own)):
        logits = one.forward(chains([5], [5], [5])).logits
        for b in range(3):
            subject.same(logits[b, 0], subject.after([*words[b], 5]))


def c5_pending_token(subject: Subject) -> None:
    session = subject.open(3)
    prompts = [[*p, 3, 4] for p in subject.prompts()]
    assert session.prefill([p[:-1] for p in prompts]) is None
    assert session.lengths == tuple(len(p) - 1 for p in prompts)
    logits = session.forward(chains(*(p[-1:] for p in prompts))).logits
    for b, prompt in enumerate(prompts):
        subject.same(logits[b, 0], subject.after(prompt))


def c6_padding_is_inert(subject: Subject) -> None:
    session = subject.ragged()
    parents = shape(session)
    tokens = subject.ids(len(parents), 11)
    narrow = np.array(session.forward(forest([(tokens, parents), IDLE, (tokens[:1], parents[:1])])).logits)
    width = min(session.caps.max_width, len(parents) + 5)
    nodes = forest([(tokens, parents), IDLE, (tokens[:1], parents[:1])], width)
    # Padding may hold anything, ids outside the vocabulary included.
    nodes.tokens[nodes.parents == PAD] = 2**31 - 1
    wide = np.array(session.forward(nodes).logits)
    subject.same(wide[0, : len(parents)], narrow[0], session.caps.tree_exact)
    subject.same(wide[2, 0], narrow[2, 0], session.caps.tree_exact)
    path = lineage(parents, len(parents) - 1)
    session.commit([path, [], [0]])
    assert session.lengths == (LENGTHS[0] + len(path), LENGTHS[1], LENGTHS[2] + 1)
    prompts = subject.prompts()
    texts = [[*prompts[0], *(tokens[i] for i in path)], prompts[1], [*prompts[2], tokens[0]]]
    logits = session.forward(chains([5], [6], [7])).logits
    for b, last in enumerate((5, 6, 7)):
        subject.same(logits[b, 0], subject.after([*texts[b], last]))


def c7_exactness_of_chains(subject: Subject) -> None:
    """Drafting with random acceptance says what width-1 decoding says, as strongly as `caps.chain_exact` promises."""
    steps = 14
    plain = subject.ragged()
    pending = subject.ids(3, 70)
    ids = [[p] for p in pending]
    want: list[list[Floats]] = [[], [], []]
    for _ in range(steps):
        logits = np.array(plain.forward(chains(*(row[-1:] for row in ids))).logits[:, 0])
        plain.commit([[0]] * 3)
        for b in range(3):
            want[b].append(logits[b])
            ids[b].append(int(logits[b].argmax()))
    keeps = plain.caps.chain_exact
    for salt in range(2):
        rng = np.random.default_rng([subject.seed, 71, salt])
        session = subject.ragged()
        done = [0, 0, 0]
        while min(done) < steps:
            rows = []
            for b in range(3):
                most = min(session.room()[b], session.caps.max_width, steps - done[b], int(rng.integers(1, 6)))
                draft = ids[b][done[b] : done[b] + most]
                if len(draft) > 1 and rng.random() < 0.5:
                    draft[-1] = int(rng.integers(session.vocab))
                rows.append(draft)
            logits = np.array(session.forward(chains(*rows)).logits)
            paths = []
            for b, draft in enumerate(rows):
                good = 0
                while good < len(draft) and draft[good] == ids[b][done[b] + good]:
                    subject.same(logits[b, good], want[b][done[b] + good], keeps)
                    good += 1
                # Leave some right drafts behind as well: what is not committed has to leave no trace.
                take = min(good, int(rng.integers(0 if good < 2 else 1, good + 1))) if rng.random() < 0.3 else good
                paths.append(list(range(take)))
                done[b] += take
            session.commit(paths)


def crop_and_replay(subject: Subject) -> None:
    session = subject.ragged()
    extra = [subject.ids(5, 80 + b) for b in range(3)]
    before = session.lengths
    if not session.caps.crop:
        if session.caps.recurrent:
            with pytest.raises(CapsError):
                session.crop([before[0] - 1, *before[1:]])
        return
    session.prefill(extra)
    session.crop([n + k for n, k in zip(before, (2, 0, 5), strict=True)])
    assert session.lengths == tuple(n + k for n, k in zip(before, (2, 0, 5), strict=True))
    session.prefill([[1, 2], [3], []])
    texts = [[*p, *e] for p, e in zip(subject.prompts(), ([*extra[0][:2], 1, 2], [3], extra[2]), strict=True)]
    logits = session.forward(chains([5], [6], [7])).logits
    for b, last in enumerate((5, 6, 7)):
        subject.same(logits[b, 0], subject.after([*texts[b], last]))
    with pytest.raises(ValueError):
        session.crop([session.lengths[0] + 1, 0, 0])


def an_emptied_row_starts_anew(subject: Subject) -> None:
    """Length 0 is always to be had, and leaves no trace of what the row held."""
    session = subject.ragged()
    before = session.lengths
    text = subject.ids(21, 90)
    session.crop([before[0], 0, before[2]])
    assert session.lengths == (before[0], 0, before[2])
    session.prefill([[], text, []])
    first, _, third = subject.prompts()
    logits = session.forward(chains([5], [6], [7])).logits
    for b, row in enumerate(([*first, 5], [*text, 6], [*third, 7])):
        subject.same(logits[b, 0], subject.after(row))


def prefill_in_pieces(subject: Subject) -> None:
    text = subject.ids(23, 5)
    whole = subject.after(text)
    session = subject.open(2)
    session.prefill([text[:4], text[:1]])
    session.prefill([text[4:15], []])
    out = session.prefill([text[15:], text[1:]], last=True)
    assert out is not None
    assert out.shape == (2, session.vocab)
    for b in range(2):
        subject.same(out[b], whole)
    out = session.prefill([[], [1]], last=True)
    assert out is not None
    assert not out[0].any()
    subject.same(out[1], subject.after([*text, 1]))


def ids_outside_the_vocabulary(subject: Subject) -> None:
    for bad in (-1, subject.model.vocab, 2**31 - 1):
        session = subject.open(2)
        session.prefill([[1, 2], [3]])
        with pytest.raises(PromptError):
            session.prefill([[1], [bad]])
        with pytest.raises(PromptError):
            session.forward(chains([1], [bad]))
            session.commit([[0], [0]])
        # The session lives on.
        fresh = subject.open(1)
        with pytest.raises(PromptError):
            fresh.prefill([[bad]])
        assert fresh.lengths == (0,)
        fresh.prefill([[1, 2]])
        subject.same(fresh.forward(chains([3])).logits[0, 0], subject.after([1, 2, 3]))


def more_than_capacity(subject: Subject) -> None:
    session = subject.open()
    with pytest.raises(PromptError):
        session.prefill([subject.ids(subject.capacity + 1)])
    session = subject.open()
    text = subject.ids(subject.capacity)
    session.prefill([text[:-2]])
    assert session.room()[0] <= 2
    session.forward(chains(text[-2:-1]))
    session.commit([[0]])
    logits = np.array(session.forward(chains(text[-1:])).logits)
    session.commit([[0]])
    assert session.lengths == (subject.capacity,)
    subject.same(logits[0, 0], subject.after(text))
    with pytest.raises((PromptError, ValueError)):
        session.forward(chains([1]))
        session.commit([[0]])


def commit_wants_paths(subject: Subject) -> None:
    session = subject.open()
    session.prefill([[1, 2, 3]])
    with pytest.raises(ValueError):
        session.commit([[0]])
    most = min(session.room()[0], 3)
    if most > 1:
        session.forward(chains(subject.ids(most, 1)))
        with pytest.raises(ValueError):
            session.commit([[1]])
    session = subject.open()
    session.prefill([[1, 2, 3]])
    session.forward(chains([4]))
    session.commit([[]])
    assert session.lengths == (3,)
    subject.same(session.forward(chains([5])).logits[0, 0], subject.after([1, 2, 3, 5]))


def steps_agree_with_logits(subject: Subject) -> None:
    session = subject.ragged()
    parents = shape(session)
    step = session.forward(forest([(subject.ids(len(parents), b), parents) for b in range(3)]))
    logits = np.array(step.logits)
    assert logits.shape == (3, len(parents), session.vocab)
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(step.argmax, logits.argmax(-1))
    ids, best = step.top(5)
    order = np.argsort(-logits, axis=-1, kind="stable")[..., :5]
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_array_equal(best, np.take_along_axis(logits, order, -1))
    assert ids.dtype == step.argmax.dtype == np.int32


def embeds_stand_for_tokens(subject: Subject) -> None:
    session = subject.ragged()
    tokens = np.array([[3], [4], [5]], np.int32)
    nodes = chains(*tokens.tolist())
    if not session.caps.embeds:
        with pytest.raises(CapsError):
            session.forward(Nodes(tokens=tokens, parents=nodes.parents, embeds=np.zeros((3, 1, 4), np.float32)))
        return
    want = np.array(session.forward(nodes).logits)
    embeds = session.embed(tokens)
    assert embeds.dtype == np.float32
    got = session.forward(Nodes(tokens=np.zeros_like(tokens), parents=nodes.parents, embeds=embeds)).logits
    subject.same(got, want)


def head_of_the_last_hidden(subject: Subject) -> None:
    session = subject.ragged()
    nodes = chains([3, 4], [4], [5, 6])
    if min(session.room()) < 2:
        nodes = chains([3], [4], [5])
    if not session.caps.hidden:
        with pytest.raises(CapsError):
            session.forward(nodes, Want(hidden=(0,)))
        assert session.caps.num_layers == 0
        return
    first = session.embed(nodes.tokens)
    layers = _num_layers(session, nodes)
    assert session.caps.num_layers == layers
    step = session.forward(nodes, Want(hidden=(0, layers)))
    logits, last = np.array(step.logits), np.array(step.hidden(layers))
    assert last.shape == step.hidden(0).shape
    assert last.dtype == np.float32
    assert first.shape[:-1] == nodes.tokens.shape
    real = nodes.parents != PAD
    subject.same(session.head(last)[real], logits[real])
    with pytest.raises((CapsError, ValueError)):
        session.forward(nodes, Want(hidden=(layers + 1,)))


def positions_and_visibility(subject: Subject) -> None:
    """The defaults, spelled out, change nothing; a node cut off from its parent runs as a sibling would."""
    session = subject.ragged()
    if not session.caps.visible or min(session.room()) < 2:
        return
    nodes = chains([3, 4], [4, 5], [5, 6])
    want = np.array(session.forward(nodes).logits)
    positions = np.array([[n, n + 1] for n in session.lengths], np.int32)
    lower = np.broadcast_to(np.tril(np.ones((2, 2), bool)), (3, 2, 2)).copy()
    spelled = Nodes(tokens=nodes.tokens, parents=nodes.parents, positions=positions, visible=lower)
    np.testing.assert_array_equal(session.forward(spelled).logits, want)
    alone = np.broadcast_to(np.eye(2, dtype=bool), (3, 2, 2)).copy()
    apart = Nodes(tokens=nodes.tokens, parents=nodes.parents, positions=positions - [0, 1], visible=alone)
    got = np.array(session.forward(apart).logits[:, 1])
    single = np.array(session.forward(chains([4], [5], [6])).logits[:, 0])
    subject.same(got, single)


def bytes_are_reported(subject: Subject) -> None:
    session = subject.ragged()
    session.forward(chains([1], [2], [3]))
    parts = session.cache_bytes()
    assert all(isinstance(n, int) and n >= 0 for n in parts.values())
    if subject.model.backend != "table":
        assert sum(parts.values()) > 0


def _num_layers(session: Session, nodes: Nodes) -> int:
    """The highest layer whose hidden state can be had."""
    layer = 0
    while True:
        try:
            session.forward(nodes, Want(hidden=(layer + 1,)))
        except (CapsError, ValueError):
            return layer
        layer += 1


CHECKS: tuple[Callable[[Subject], None], ...] = (
    c1_forward_changes_nothing,
    c2_siblings_are_invisible,
    c3_commit_is_prefill,
    c4_fork_rows_are_independent,
    c5_pending_token,
    c6_padding_is_inert,
    c7_exactness_of_chains,
    crop_and_replay,
    an_emptied_row_starts_anew,
    prefill_in_pieces,
    ids_outside_the_vocabulary,
    more_than_capacity,
    commit_wants_paths,
    steps_agree_with_logits,
    embeds_stand_for_tokens,
    head_of_the_last_hidden,
    positions_and_visibility,
    bytes_are_reported,
)
"""Every check, for `pytest.mark.parametrize`."""
