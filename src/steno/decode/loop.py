"""The decoding loop: draft, verify all drafts in one forward, commit what was accepted; in a batch that refills itself.

Per step and row the pending token is node 0 and the draft hangs off it; the acceptor walks down from there, the path is
committed, and the token the walk ends on becomes pending. Plain decoding is the same loop without a drafter. A finished
row takes the next request.

What comes out is a function of request, plan and model alone, never of batch, order, drafter or timing (where the
session is exact, `Caps.chain_exact`): randomness is keyed by position, ends are looked for token by token, and rows
share nothing but the forward.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from time import perf_counter
from typing import TYPE_CHECKING, cast
from weakref import WeakKeyDictionary

import numpy as np

from steno.core import PAD, ROOT, CacheSpec, Model, Nodes, Plan, Session, Step, Want
from steno.core.errors import PlanError

from ._budget import Budget, CostTable
from ._fence import Fence, lawful, led
from ._hunt import hunt
from ._law import softmax
from ._reading import attach, read
from ._row import Row, check
from ._text import Decoder
from ._trim import EMPTY, fit
from ._view import NodeView
from .base import (
    AcceptorKnob,
    Completion,
    ConstraintKnob,
    Draft,
    Drafter,
    DrafterKnob,
    Floats,
    Ints,
    Piece,
    Reader,
    Request,
    ScheduleKnob,
    SearchKnob,
    Seen,
    ShaperKnob,
)

if TYPE_CHECKING:
    from steno.tokens import Words


def generate(
    model: Model,
    requests: Sequence[Request],
    plan: Plan = Plan(),
    *,
    batch: int = 1,
    text: Decoder | None = None,
    on_piece: Callable[[Piece], None] | None = None,
    costs: CostTable | None = None,
    capacity: int | None = None,
    words: "Words | None" = None,
) -> list[Completion]:
    """Continue `requests`, `batch` of them at a time; completions come in the order of the requests.

    text      ids to text, for pieces and stop strings; without it both texts are empty
    on_piece  called with each piece as it comes
    costs     of forwards by width; None: measured once per model
    capacity  tokens a row holds; None: what the longest request needs
    words     what tokens write: constraints need it

    Raises PromptError for a request that cannot be served (before anything runs) and PlanError for a plan that does
    not fit.

    >>> from steno.models import ModelSpec, load
    >>> (done,) = generate(load(ModelSpec(source="table:16:0")), [Request(number=0, prompt=(1, 2), max_tokens=3)])
    >>> len(done.tokens), done.finish
    (3, 'length')
    """
    if capacity is None:
        capacity = max((len(r.prompt) + max(r.max_tokens, 0) for r in requests), default=1)
    rows = min(batch, max(len(requests), 1))
    loop = Loop(model, plan, batch=rows, text=text, costs=costs, capacity=capacity, words=words)
    tickets = [loop.submit(request) for request in requests]
    for piece in loop:
        if on_piece is not None:
            on_piece(piece)
    return [loop.completed.pop(ticket) for ticket in tickets]


@dataclass(slots=True)
class Turn:
    """One row in one step.

    draft   what runs below the pending token
    path    accepted nodes of `draft`
    after   the token the walk ended on
    judged  the draft before the confirming pass cut it to its accepted path, where there was one
    taken   the accepted nodes of that
    """

    slot: int
    row: Row
    draft: Draft = EMPTY
    path: Sequence[int] = ()
    after: int = -1
    passes: int = 0
    judged: Draft | None = None
    taken: Sequence[int] = ()


class Loop:
    """A running loop. Submit requests at any time; iterate, or call `step`, for pieces; take from `completed`.

    capacity   tokens a row holds
    completed  finished requests by ticket
    forwards   forwards run so far
    """

    def __init__(
        self,
        model: Model,
        plan: Plan = Plan(),
        *,
        batch: int = 1,
        text: Decoder | None = None,
        costs: CostTable | None = None,
        capacity: int | None = None,
        words: "Words | None" = None,
    ) -> None:
        if batch < 1:
            raise PlanError(f"batch: a loop needs at least 1 row, got {batch}.")
        if woven := plan.find("reuse"):
            raise PlanError(f"{woven[0].name} weaves a text from known pieces and decodes none. Call its `weave`.")
        plan.check(model.backend)
        for knob in plan.find("decode.score"):
            raise PlanError(
                f"{knob.name} stands in a field of a search. Write for example: "
                f"--set 'decode.search.pgtd.reward={{ name = \"{knob.name}\" }}'"
            )
        self.model = model
        self._schedule = cast(ScheduleKnob | None, plan.one("decode.schedule"))
        self._most = batch
        self.batch = batch if self._schedule is None else self._schedule.held(batch)
        self.capacity = min(capacity or model.context, model.context)
        self.completed: dict[int, Completion] = {}
        self.forwards = 0
        self._text = text
        self._cache = cast("CacheSpec | None", plan.one("cache"))
        self._search = cast(SearchKnob | None, plan.one("decode.search"))
        self._fence = Fence(cast(ConstraintKnob | None, plan.one("decode.constrain")), words, model.eos)
        drafter = cast(DrafterKnob | None, plan.one("decode.draft"))
        for part in (drafter, *drafter.parts()) if drafter else ():
            if isinstance(part, DrafterKnob):
                part.fits(model)
        self._drafter: Drafter | None = drafter.open(self.batch, model.vocab) if drafter else None
        self._reader = self._drafter if isinstance(self._drafter, Reader) and self._drafter.hidden else None
        self._want = Want(hidden=self._reader.hidden) if self._reader else Want()
        self._acceptor = acceptor(plan)
        self._shapers = cast(tuple[ShaperKnob, ...], plan.find("decode.shape"))
        self._view = NodeView(self._shapers, self.model.eos, text)
        self._costs = costs
        self._budget: Budget | None = None
        self._session: Session | None = None
        self._queue: deque[tuple[int, Request]] = deque()
        self._rows: list[Row | None] = [None] * self.batch
        self._tickets = 0
        self._arrays: dict[int, tuple[Ints, Ints]] = {}

    @property
    def busy(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self._queue) or any(row is not None for row in self._rows)

    def submit(self, request: Request) -> int:
        """Queue a request and get its ticket. Raises PromptError or PlanError where it cannot be served."""
        check(request, self.capacity, self.model.vocab, self._text)
        self._fence.start(request)
        ticket = self._tickets
        self._tickets += 1
        self._queue.append((ticket, request))
        return ticket

    def __iter__(self) -> Iterator[Piece]:
        while self.busy:
            yield from self.step()

    def step(self) -> list[Piece]:
        """One step of every running row, after rows that are free have taken requests; a whole request of a search."""
        if self._search is not None:
            return self._hunt(self._search)
        self._admit()
        turns = [Turn(slot, row) for slot, row in enumerate(self._rows) if row is not None]
        if not turns:
            return []
        if self._schedule is not None:
            turns.sort(key=lambda turn: turn.row.ticket)
            chosen = self._schedule.choose(self._most, [len(turn.row.ids) for turn in turns])
            turns = [turns[i] for i in chosen]
        session = cast(Session, self._session)
        start = perf_counter()
        self._draft(session, turns)
        drafted = perf_counter()
        step = self._forward(session, turns)
        forwarded = perf_counter()
        verify, view = self._acceptor.verify, self._view
        for turn in turns:
            view.aim(turn.slot, turn.row.request, turn.row.ids, turn.draft, place=turn.row.place)
            turn.path, turn.after = verify(turn.draft, view)
            turn.taken = turn.path
        if self._confirms and any(turn.draft.branches for turn in turns):
            step = self._confirm(session, turns)
        pieces = self._settle(session, turns, step)
        done = perf_counter()
        if self._costs is None and self._budget is not None:
            self._budget.watch(done - forwarded, drafted - start)
        share = 1.0 / len(turns)
        for turn in turns:
            stats = turn.row.stats
            stats.decode_s += (done - start) * share
            stats.draft_s += (drafted - start) * share
            stats.forward_s += (forwarded - drafted) * share
            stats.verify_s += (done - forwarded) * share
            if turn.row.finish:
                self.completed[turn.row.ticket] = turn.row.complete()
        return pieces

    def _hunt(self, knob: SearchKnob) -> list[Piece]:
        """Search for the next request from start to end."""
        row = self._next()
        if row is None:
            return []
        piece, found = hunt(
            knob, row, self.model, capacity=self.capacity, cache=self._cache, shapers=self._shapers, text=self._text
        )
        self.forwards += row.stats.passes
        self.completed[row.ticket] = row.complete(found)
        return [piece]

    def _admit(self) -> None:
        """Free rows take the next requests; one prefill serves all that start together."""
        if not self._queue:
            return
        starters: list[tuple[int, Row]] = []
        for slot, held in enumerate(self._rows):
            if held is None:
                row = self._next()
                if row is None:
                    break
                self._rows[slot] = row
                starters.append((slot, row))
        if starters:
            self._start(starters)

    def _next(self) -> Row | None:
        """The next request that has anything to do."""
        while self._queue:
            ticket, request = self._queue.popleft()
            place = self._fence.start(request)
            row = Row(ticket, request, capacity=self.capacity, eos=self.model.eos, decode=self._text, place=place)
            if not row.finish:
                return row
            self.completed[ticket] = row.complete()
        return None

    def _start(self, starters: Sequence[tuple[int, Row]]) -> None:
        start = perf_counter()
        session = self._session
        if session is None:
            session = self._session = self.model.open(self.batch, self.capacity, self._cache)
            if self._reader is not None:
                attach(self._reader, session, self.model)
        lengths = list(session.lengths)
        prompts: list[list[int]] = [[] for _ in range(self.batch)]
        for slot, row in starters:
            lengths[slot] = 0
            # The last prompt token stays pending: it is node 0 of the first forest (contract C5).
            prompts[slot] = row.ids[:-1]
        if lengths != list(session.lengths):
            session.crop(lengths)
        if self._drafter is not None:
            for slot, row in starters:
                self._drafter.start(slot, row.request)
        if self._reader is not None and self._reader.prompts:
            read(self._reader, session, prompts)
        elif any(prompts):
            session.prefill(prompts)
        seconds = perf_counter() - start
        total = sum(len(row.ids) for _, row in starters)
        for _, row in starters:
            row.stats.prefill_s = seconds * len(row.ids) / total

    @cached_property
    def _confirms(self) -> bool:
        """Whether a branching draft is less exact than a chain here."""
        caps = cast(Session, self._session).caps
        return caps.tree_exact.rank > caps.chain_exact.rank

    def _draft(self, session: Session, turns: Sequence[Turn]) -> None:
        if self._drafter is None and all(turn.row.place is None for turn in turns):
            return
        caps, room = session.caps, session.room()
        width = caps.max_width - 1
        found = False
        for turn in turns:
            # A path of d drafts yields d + 1 tokens and commits d + 1 nodes.
            depth = min(turn.row.left, room[turn.slot]) - 1
            if min(depth, width) > 0:
                turn.draft = self._proposed(turn, depth, width, caps.tree)
                found = found or bool(turn.draft.tokens)
        if found:
            if self._budget is None:
                self._budget = self._calibrate(session, [turn.slot for turn in turns])
            chosen = self._budget.choose([turn.draft for turn in turns])
            for turn, draft in zip(turns, chosen, strict=True):
                if turn.draft.tokens:
                    turn.row.drafted(bool(draft.tokens) and self._budget.worth)
                turn.draft = draft

    def _proposed(self, turn: Turn, depth: int, width: int, tree: bool) -> Draft:
        """What the constraint forces, and below it what the drafter proposes: `width` nodes, `depth` deep at most."""
        row = turn.row
        knob = self._fence.knob(row.request)
        most = min(depth, width)
        forced = row.place.forced()[:most] if row.place is not None and knob is not None and knob.drafts else ()
        draft = EMPTY
        if self._drafter is not None and len(forced) < most and row.drafts():
            room = width - len(forced)
            draft = self._drafter.propose(turn.slot, row.ids, room, forced)
            draft = fit(draft, vocab=self.model.vocab, width=room, depth=depth - len(forced), tree=tree)
        draft = led(forced, draft) if forced else draft
        return draft if row.place is None else lawful(draft, row.place)

    def _calibrate(self, session: Session, live: list[int]) -> Budget:
        costs = self._costs
        if costs is None:
            known = _measured.setdefault(self.model, {})
            key = (len(live), self._cache)
            costs = known.get(key)
            if costs is None:
                costs = known[key] = CostTable.measure(session, rows=live)
        return Budget(costs, session.caps.max_width, confirm=self._confirms)

    def _forward(self, session: Session, turns: Sequence[Turn]) -> Step:
        """Run the forest of `turns`: per row its pending token, then its draft."""
        width = 1 + max([len(turn.draft.tokens) for turn in turns])
        arrays = self._arrays.get(width)
        if arrays is None:
            shape = self.batch, width
            arrays = self._arrays[width] = np.zeros(shape, np.int32), np.empty(shape, np.int32)
        tokens, parents = arrays
        parents.fill(PAD)
        for turn in turns:
            slot, draft = turn.slot, turn.draft
            tokens[slot, 0] = turn.row.ids[-1]
            parents[slot, 0] = ROOT
            size = len(draft.tokens) + 1
            if size > 1:
                tokens[slot, 1:size] = draft.tokens
                parents[slot, 1:size] = draft.parents
                parents[slot, 1:size] += 1
            turn.passes += 1
        step = session.forward(Nodes(tokens=tokens, parents=parents), self._want)
        self.forwards += 1
        self._view.load(step)
        return step

    def _confirm(self, session: Session, turns: Sequence[Turn]) -> Step:
        """Run the accepted paths again as chains, which are exact, and judge the same drafts by what that says.

        The acceptor sees the whole draft once more, so that its law stays what it was. Where it leaves the chain, the
        token it leaves to was decided by exact logits and becomes pending; what it says further down is dropped.
        """
        drafts = [turn.draft for turn in turns]
        for turn in turns:
            turn.draft = Draft.chain([turn.draft.tokens[i] for i in turn.path], source=turn.draft.source)
        step = self._forward(session, turns)
        for turn, draft in zip(turns, drafts, strict=True):
            chain = turn.path
            columns = [-1] * len(draft.tokens)
            for column, node in enumerate(chain, 1):
                columns[node] = column
            self._view.aim(turn.slot, turn.row.request, turn.row.ids, draft, columns, place=turn.row.place)
            path, after = self._acceptor.verify(draft, self._view)
            same = 0
            while same < min(len(path), len(chain)) and path[same] == chain[same]:
                same += 1
            turn.after = after if same == len(path) else draft.tokens[path[same]]
            turn.path = list(range(same))
            turn.taken = chain[:same]
            turn.judged = draft
        return step

    def _settle(self, session: Session, turns: Sequence[Turn], step: Step) -> list[Piece]:
        """Cut, count, commit and tell the drafter."""
        drafter = self._drafter
        top, logits = step.top(drafter.top) if drafter is not None and drafter.top else (None, None)
        hidden = {layer: step.hidden(layer) for layer in self._want.hidden}
        paths: list[list[int]] = [[] for _ in range(self.batch)]
        pieces: list[Piece] = []
        for turn in turns:
            row, draft, path = turn.row, turn.draft, turn.path
            size = len(draft.tokens) + 1
            laws = self._laws(turn) if drafter is not None and drafter.laws else None
            judged = turn.judged or draft
            new = [draft.tokens[i] for i in path]
            new.append(turn.after)
            pending = row.ids[-1]
            # The cut comes before the commit, and what is counted is what is left of the path.
            piece = row.take(new, len(path), draft.source)
            pieces.append(piece)
            accepted = piece.drafted
            nodes = [0, *[i + 1 for i in path[:accepted]]]
            row.count(turn.passes, len(judged.tokens), accepted)
            if row.finish:
                self._rows[turn.slot] = None
            else:
                paths[turn.slot] = nodes
            if self._budget is not None and judged.tokens:
                self._budget.learn(judged, turn.taken)
            if drafter is not None:
                seen = Seen(
                    tokens=(pending, *draft.tokens),
                    parents=(ROOT, *[p + 1 for p in draft.parents]),
                    path=nodes,
                    new=piece.tokens,
                    top=None if top is None else top[turn.slot, :size],
                    logits=None if logits is None else logits[turn.slot, :size],
                    laws=laws,
                    hidden={layer: states[turn.slot, :size] for layer, states in hidden.items()} if hidden else None,
                )
                drafter.observe(turn.slot, seen)
                if row.finish:
                    drafter.finish(turn.slot, row.ids)
        if any(paths):
            session.commit(paths)
        return pieces

    def _laws(self, turn: Turn) -> Floats:
        """[n, V] the shaped law after every node of the last forward."""
        view = self._view
        view.aim(turn.slot, turn.row.request, turn.row.ids, turn.draft, place=turn.row.place)
        return np.stack([softmax(view.logits(node)) for node in range(-1, len(turn.draft.tokens))]).astype(np.float32)


def acceptor(plan: Plan) -> AcceptorKnob:
    """The plan's acceptor; without one greedy, or seed-exact sampling where a temperature is set."""
    chosen = cast(AcceptorKnob | None, plan.one("decode.accept"))
    if chosen is not None:
        return chosen
    if plan.find("decode.shape.temperature"):
        from .accept.gumbel import Gumbel

        return Gumbel()
    from .accept.greedy import Greedy

    return Greedy()


_measured: "WeakKeyDictionary[Model, dict[tuple[int, object], CostTable]]" = WeakKeyDictionary()
"""Costs belong to a model on this machine, by live rows and cache form: measured once, reused by every loop."""
