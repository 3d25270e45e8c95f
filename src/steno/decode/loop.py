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
from time import perf_counter
from typing import cast
from weakref import WeakKeyDictionary

import numpy as np

from steno.core import PAD, ROOT, CacheSpec, Model, Nodes, Plan, Session, Step
from steno.core.errors import PlanError

from ._budget import Budget, CostTable
from ._row import Row, check
from ._text import Decoder
from ._trim import EMPTY, fit
from ._view import NodeView
from .base import AcceptorKnob, Completion, Draft, Drafter, DrafterKnob, Ints, Piece, Request, Seen, ShaperKnob


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
) -> list[Completion]:
    """Continue `requests`, `batch` of them at a time; completions come in the order of the requests.

    text      ids to text, for pieces and stop strings; without it both texts are empty
    on_piece  called with each piece as it comes
    costs     of forwards by width; None: measured once per model
    capacity  tokens a row holds; None: what the longest request needs

    Raises PromptError for a request that cannot be served (before anything runs) and PlanError for a plan that does
    not fit.
    """
    if capacity is None:
        capacity = max((len(r.prompt) + max(r.max_tokens, 0) for r in requests), default=1)
    loop = Loop(model, plan, batch=min(batch, max(len(requests), 1)), text=text, costs=costs, capacity=capacity)
    for request in requests:
        check(request, loop.capacity, model.vocab, text)
    tickets = [loop.submit(request) for request in requests]
    for piece in loop:
        if on_piece is not None:
            on_piece(piece)
    return [loop.completed.pop(ticket) for ticket in tickets]


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
    ) -> None:
        if batch < 1:
            raise PlanError(f"batch: a loop needs at least 1 row, got {batch}.")
        plan.check(model.backend)
        self.model = model
        self.batch = batch
        self.capacity = min(capacity or model.context, model.context)
        self.completed: dict[int, Completion] = {}
        self.forwards = 0
        self._text = text
        self._cache = cast("CacheSpec | None", plan.one("cache"))
        drafter = cast(DrafterKnob | None, plan.one("decode.draft"))
        self._drafter: Drafter | None = drafter.open(batch, model.vocab) if drafter else None
        self._acceptor = acceptor(plan)
        self._view = NodeView(cast(tuple[ShaperKnob, ...], plan.find("decode.shape")))
        self._costs = costs
        self._budget: Budget | None = None
        self._session: Session | None = None
        self._queue: deque[tuple[int, Request]] = deque()
        self._rows: list[Row | None] = [None] * batch
        self._clean: set[int] = set()
        self._tickets = 0
        self._arrays: dict[int, tuple[Ints, Ints]] = {}

    @property
    def busy(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self._queue) or any(row is not None for row in self._rows)

    def submit(self, request: Request) -> int:
        """Queue a request and get its ticket. Raises PromptError where it cannot be served."""
        check(request, self.capacity, self.model.vocab, self._text)
        ticket = self._tickets
        self._tickets += 1
        self._queue.append((ticket, request))
        return ticket

    def __iter__(self) -> Iterator[Piece]:
        while self.busy:
            yield from self.step()

    def step(self) -> list[Piece]:
        """One step of every running row, after rows that are free have taken requests."""
        self._admit()
        live = [(b, row) for b, row in enumerate(self._rows) if row is not None]
        if not live:
            return []
        session = cast(Session, self._session)
        start = perf_counter()
        drafts = self._draft(session, live)
        drafted = perf_counter()
        step = session.forward(self._nodes([(b, row, drafts[b]) for b, row in live]))
        forwarded = perf_counter()
        self.forwards += 1
        view = self._view
        view.load(step)
        verify = self._acceptor.verify
        walks: dict[int, tuple[list[int], int]] = {}
        for b, row in live:
            view.aim(b, row.request, row.ids, drafts[b])
            walks[b] = verify(drafts[b], view)
        ran = drafts
        passes = 1
        if self._confirms and any(draft.branches for draft in drafts.values()):
            ran, walks, step = self._confirm(session, live, drafts, walks)
            passes = 2
        pieces = self._settle(session, live, drafts, ran, walks, step, passes)
        done = perf_counter()
        share = 1.0 / len(live)
        for _, row in live:
            stats = row.stats
            stats.decode_s += (done - start) * share
            stats.draft_s += (drafted - start) * share
            stats.forward_s += (forwarded - drafted) * share
            stats.verify_s += (done - forwarded) * share
            if row.finish:
                self.completed[row.ticket] = row.complete()
        return pieces

    def _admit(self) -> None:
        """Free rows take the next requests; one prefill serves all that start together."""
        starters: list[tuple[int, Row]] = []
        while self._queue:
            b = self._free_row()
            if b is None:
                break
            ticket, request = self._queue.popleft()
            row = Row(
                ticket, request, capacity=self.capacity, vocab=self.model.vocab, eos=self.model.eos, decode=self._text
            )
            if row.finish:
                self.completed[ticket] = row.complete()
                continue
            self._rows[b] = row
            starters.append((b, row))
        if not starters:
            return
        start = perf_counter()
        session = self._ready([b for b, _ in starters])
        prompts: list[list[int]] = [[] for _ in range(self.batch)]
        for b, row in starters:
            # The last prompt token stays pending: it is node 0 of the first forest (contract C5).
            prompts[b] = row.ids[:-1]
        if any(prompts):
            session.prefill(prompts)
        seconds = perf_counter() - start
        total = sum(len(row.ids) for _, row in starters)
        for b, row in starters:
            row.stats.prefill_s = seconds * len(row.ids) / total
            if self._drafter is not None:
                self._drafter.start(b, row.request)

    def _free_row(self) -> int | None:
        session = self._session
        free = [b for b, row in enumerate(self._rows) if row is None]
        if session is None or session.caps.crop or len(free) == self.batch:
            return free[0] if free else None
        # A state that cannot be cropped is left only by a row that holds nothing yet.
        return next((b for b in free if session.lengths[b] == 0 and self._rows[b] is None), None)

    def _ready(self, starting: list[int]) -> Session:
        """The session, with the rows `starting` empty."""
        session = self._session
        if session is None:
            session = self._session = self.model.open(self.batch, self.capacity, self._cache)
            return session
        lengths = list(session.lengths)
        if any(lengths[b] for b in starting):
            if session.caps.crop:
                session.crop([0 if b in starting else n for b, n in enumerate(lengths)])
            else:
                session = self._session = self.model.open(self.batch, self.capacity, self._cache)
        return session

    @property
    def _confirms(self) -> bool:
        """Whether a branching draft is less exact than a chain here."""
        caps = cast(Session, self._session).caps
        return caps.tree_exact.rank > caps.chain_exact.rank

    def _draft(self, session: Session, live: Sequence[tuple[int, Row]]) -> dict[int, Draft]:
        drafter = self._drafter
        if drafter is None:
            return {b: EMPTY for b, _ in live}
        caps = session.caps
        room = session.room()
        vocab = self.model.vocab
        drafts: dict[int, Draft] = {}
        for b, row in live:
            # A path of d drafts yields d + 1 tokens and commits d + 1 nodes.
            depth = min(row.left, room[b]) - 1
            if depth > 0:
                draft = drafter.propose(b, row.ids, caps.max_width - 1)
                drafts[b] = fit(draft, vocab=vocab, width=caps.max_width - 1, depth=depth, tree=caps.tree)
            else:
                drafts[b] = EMPTY
        if not any(draft.tokens for draft in drafts.values()):
            return drafts
        if self._budget is None:
            self._budget = self._calibrate(session, [b for b, _ in live])
        cut = self._budget.choose([drafts[b] for b, _ in live])
        return {b: draft for (b, _), draft in zip(live, cut, strict=True)}

    def _calibrate(self, session: Session, live: list[int]) -> Budget:
        costs = self._costs
        if costs is None:
            known = _measured.setdefault(self.model, {})
            key = (len(live), self._cache)
            costs = known.get(key)
            if costs is None:
                costs = known[key] = CostTable.measure(session, rows=live)
        return Budget(costs, session.caps.max_width, confirm=self._confirms)

    def _nodes(self, forest: Sequence[tuple[int, Row, Draft]]) -> Nodes:
        """The forest of one forward: per row its pending token, then its draft."""
        width = 1 + max([len(draft.tokens) for _, _, draft in forest])
        arrays = self._arrays.get(width)
        if arrays is None:
            arrays = self._arrays[width] = (
                np.zeros((self.batch, width), np.int32),
                np.empty((self.batch, width), np.int32),
            )
        tokens, parents = arrays
        parents.fill(PAD)
        for b, row, draft in forest:
            tokens[b, 0] = row.ids[-1]
            parents[b, 0] = ROOT
            size = len(draft.tokens)
            if size:
                tokens[b, 1 : size + 1] = draft.tokens
                parents[b, 1 : size + 1] = draft.parents
                parents[b, 1 : size + 1] += 1
        return Nodes(tokens=tokens, parents=parents)

    def _confirm(
        self,
        session: Session,
        live: Sequence[tuple[int, Row]],
        drafts: dict[int, Draft],
        walks: dict[int, tuple[list[int], int]],
    ) -> tuple[dict[int, Draft], dict[int, tuple[list[int], int]], Step]:
        """Run the accepted paths again as chains, which are exact, and judge the same drafts by what that says.

        The acceptor sees the whole draft once more, so that its law stays what it was; where it leaves the chain, the
        token it leaves to is decided by exact logits and becomes pending, and what it says further down is dropped.
        """
        chains = {
            b: Draft.chain([drafts[b].tokens[i] for i in path], source=drafts[b].source)
            for b, (path, _) in walks.items()
        }
        step = session.forward(self._nodes([(b, row, chains[b]) for b, row in live]))
        self.forwards += 1
        self._view.load(step)
        again: dict[int, tuple[list[int], int]] = {}
        for b, row in live:
            draft = drafts[b]
            ran = walks[b][0]
            columns = [-1] * len(draft.tokens)
            for column, node in enumerate(ran, 1):
                columns[node] = column
            self._view.aim(b, row.request, row.ids, draft, columns)
            path, after = self._acceptor.verify(draft, self._view)
            same = 0
            while same < len(path) and columns[path[same]] == same + 1:
                same += 1
            again[b] = (list(range(same)), after if same == len(path) else draft.tokens[path[same]])
        return chains, again, step

    def _settle(
        self,
        session: Session,
        live: Sequence[tuple[int, Row]],
        drafts: dict[int, Draft],
        ran: dict[int, Draft],
        walks: dict[int, tuple[list[int], int]],
        step: Step,
        passes: int,
    ) -> list[Piece]:
        """Cut, count, commit and tell the drafter."""
        drafter = self._drafter
        top = step.top(drafter.top)[0] if drafter is not None and drafter.top else None
        paths: list[list[int]] = [[] for _ in range(self.batch)]
        pieces: list[Piece] = []
        for b, row in live:
            path, after = walks[b]
            tokens = ran[b].tokens
            new = [tokens[i] for i in path]
            new.append(after)
            piece = row.take(new, len(path), drafts[b].source)
            pieces.append(piece)
            accepted = piece.drafted
            nodes = [0, *[i + 1 for i in path[:accepted]]]
            stats = row.stats
            stats.passes += passes
            stats.drafted += len(drafts[b].tokens)
            stats.accepted += accepted
            stats.histogram[accepted] = stats.histogram.get(accepted, 0) + 1
            if row.finish:
                self._rows[b] = None
            else:
                paths[b] = nodes
            if drafter is None:
                continue
            if self._budget is not None and tokens:
                self._budget.learn(ran[b], path)
            drafter.observe(
                b,
                Seen(
                    tokens=(row.ids[-len(piece.tokens) - 1], *tokens),
                    parents=(ROOT, *[p + 1 for p in ran[b].parents]),
                    path=nodes,
                    new=piece.tokens,
                    top=None if top is None else top[b, : len(tokens) + 1],
                ),
            )
            if row.finish:
                drafter.finish(b, row.ids)
        if any(paths):
            session.commit(paths)
        return pieces


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
