"""The decode room's protocols: what a drafter proposes, what an acceptor decides, what a shaper does to logits.

The loop (`loop.py`) is the only caller of `Session` for these; a search runs over forks of its own. Per step and row:
the pending token is node 0, the draft hangs off it, one forward scores all nodes, the acceptor walks down from node 0,
the path is committed, and the token it ends on becomes pending. A drafter decides speed only; an acceptor decides what
comes out.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from steno.core import ROOT, Key, Knob, Model, Nodes, Session, Step, Want
from steno.core.errors import UserError

from ._text import Decoder, unmarked

Ints = npt.NDArray[np.int32]
if TYPE_CHECKING:
    from steno.tokens import Words

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One text to continue.

    number   keys the random stream, together with `seed`; row and batch never do
    prompt   token ids, at least one
    stop     strings that end the text; the text is cut before the first of them
    ignore_eos  go on past the model's end tokens (for measuring speed over equal counts)
    constrain   what this text has to be; None: what the plan says
    """

    number: int
    prompt: tuple[int, ...]
    max_tokens: int = 128
    stop: tuple[str, ...] = ()
    seed: int = 0
    ignore_eos: bool = False
    constrain: "ConstraintKnob | None" = None


@dataclass(frozen=True, slots=True)
class Draft:
    """A forest of proposed tokens below the pending token.

    tokens   proposed ids
    parents  per token the index of its parent in `tokens`, ROOT for a child of the pending token; parents come first
    scores   the drafter's estimate that the path down to the token is accepted; cuts a draft to a budget
    laws     [n, V] distributions the tokens were *sampled* from; None: they were chosen, not sampled. A row is the law
             of its token given its earlier siblings: without replacement, those are zeroed and the rest renormalised.
             Leaving `laws` out is always lawful: a token that was chosen is judged whatever it was chosen by
    source   which drafter, for the statistics
    kept     the first `kept` nodes run whatever they are worth: what the model says there feeds later drafts
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    laws: Floats | None = None
    source: str = ""
    kept: int = 0

    @staticmethod
    def chain(tokens: Sequence[int], scores: Sequence[float] = (), source: str = "") -> "Draft":
        """A single path."""
        return Draft(tuple(tokens), tuple(range(ROOT, len(tokens) - 1)), tuple(scores), None, source)

    @property
    def branches(self) -> bool:
        """True where it is not a single path."""
        return self.parents != tuple(range(ROOT, len(self.parents) - 1))


class Drafter(Protocol):
    """Running state of a drafter over the rows of one loop."""

    top: int
    """How many best ids per node it wants to see in `observe`; 0: none."""

    laws: bool
    """Whether it wants the law of the next token at every node, as shaped and with the keys it is drawn by."""

    def start(self, row: int, request: Request) -> None:
        """A request takes the row."""
        ...

    def propose(self, row: int, ids: Sequence[int], budget: int, ahead: Sequence[int] = ()) -> Draft:
        """At most `budget` tokens below the last token of `ids` and `ahead`.

        `ids` is prompt and output, its last token pending; `ahead` is supposed to follow, and leaves no trace.
        """
        ...

    def observe(self, row: int, seen: "Seen") -> None:
        """What the model said at every node of the last step, and which path was taken."""
        ...

    def finish(self, row: int, ids: Sequence[int]) -> None:
        """The request of the row is done; `ids` is prompt and output."""
        ...


@dataclass(frozen=True, slots=True)
class Seen:
    """One row of one step.

    tokens   ids of the nodes, the pending token first
    parents  parents of the nodes, ROOT for node 0
    path     indices of the accepted nodes, node 0 first
    new      ids the row gained: the accepted drafts and the next pending token
    top      [n, top] best ids per node, where the drafter asked for them
    logits   [n, top] the model's own logits of those
    laws     [n, V] the law of the token after each node, where the drafter asked for it
    hidden   [n, M] hidden states of each node by layer, where the drafter is a `Reader`
    """

    tokens: Sequence[int]
    parents: Sequence[int]
    path: Sequence[int]
    new: Sequence[int]
    top: Ints | None = None
    logits: Floats | None = None
    laws: Floats | None = None
    hidden: Mapping[int, Floats] | None = None


@runtime_checkable
class Reader(Drafter, Protocol):
    """A drafter that works on the model's own hidden states, mostly with parts trained on them."""

    hidden: tuple[int, ...]
    """Layers whose states it wants to see at every node; 0 is the embedding, the number of layers the last."""

    prompts: bool
    """Whether it wants the states of prompts as well; a prompt then runs in forwards instead of a prefill."""

    def attach(self, session: Session) -> None:
        """The loop's session, before anything else: it embeds and projects, and may be asked for forwards."""
        ...

    def read(self, row: int, ids: Sequence[int], hidden: Mapping[int, Floats]) -> None:
        """Part of a prompt after `start`, in order, with its states [n, M] by layer; the pending token is not in it."""
        ...


@dataclass(frozen=True, kw_only=True)
class DrafterKnob(Knob):
    """Settings of a drafter."""

    def fits(self, model: Model) -> None:
        """Raises ModelError where what it was trained on is another model; nothing is trained by default."""

    @abstractmethod
    def open(self, rows: int, vocab: int) -> Drafter:
        """Fresh state for a loop of `rows` rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a shaper may know of a request beside the past: the same at every node of it.

    start  tokens of the prompt
    ends   tokens that end the text; empty where the request ignores them
    text   ids to text; None where the loop was given none
    """

    start: int = 0
    ends: frozenset[int] = frozenset()
    text: Decoder | None = None


@dataclass(frozen=True, kw_only=True)
class ScheduleKnob(Knob):
    """Settings of a schedule: a pure choice of the rows that run in a step. It decides speed only."""

    @abstractmethod
    def held(self, batch: int) -> int:
        """Rows to hold, at least `batch`, where at most `batch` run in a step."""

    @abstractmethod
    def choose(self, batch: int, lengths: Sequence[int]) -> list[int]:
        """Which of the texts that are held, by the tokens they have, run next: 1 to `batch` of them, ascending.

        Texts stand in the order in which they came.
        """


@dataclass(frozen=True, kw_only=True)
class ShaperKnob(Knob):
    """Settings of a shaper: a pure function of a node's logits and its own past (never of siblings)."""

    @abstractmethod
    def shape(self, logits: Floats, past: Sequence[int]) -> Floats:
        """New logits [V] for the token after `past` (prompt, output and the node's ancestors); -inf forbids."""

    def shape_within(self, logits: Floats, past: Sequence[int], about: About) -> Floats:
        """`shape` for those that need to know more; what nothing is known of leaves both the same."""
        return self.shape(logits, past)


class Constraint(Protocol):
    """A place in a text that is constrained. It never changes: trees, beams and rows share it and go on from it."""

    def mask(self) -> Bools:
        """[V] which tokens may come, never none; end tokens where the text may end here."""
        ...

    def allows(self, token: int) -> bool:
        """Whether `token` may come: cheaper than the mask."""
        ...

    def advance(self, token: int) -> "Constraint":
        """The place after a token that may come; after an end token only end tokens may."""
        ...

    def forced(self) -> Sequence[int]:
        """Tokens that the only way on is usually written with; a guess, which need not be what the model chooses."""
        ...


@dataclass(frozen=True, kw_only=True)
class ConstraintKnob(Knob):
    """Settings of a constraint: what the whole text has to be.

    closes  it says where the text ends, so it needs an end token
    """

    closes: ClassVar[bool] = True

    @property
    def drafts(self) -> bool:
        """Whether forced tokens are drafted."""
        return True

    @abstractmethod
    def open(self, words: "Words") -> Constraint:
        """The place before the first token of a text."""


@dataclass(frozen=True, kw_only=True)
class AcceptorKnob(Knob):
    """Settings of an acceptor."""

    @abstractmethod
    def verify(self, draft: Draft, view: "View") -> tuple[list[int], int]:
        """Walk from the pending token: (indices into the draft of the accepted tokens in order, the next token)."""


class View(Protocol):
    """What an acceptor may look at: shaped logits of the nodes of one row, made when asked for."""

    def best(self, node: int) -> int:
        """Greedy choice after `node`; -1 is the pending token, i is draft token i. The lowest id among equals."""
        ...

    def logits(self, node: int) -> Floats:
        """Shaped logits [V] after `node`."""
        ...

    def key(self, node: int, purpose: str) -> Key:
        """The random stream for the token after `node`."""
        ...


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A text a search found.

    tokens  what follows the prompt: it ends with an end token, or has as many tokens as may come
    score   the larger the better; compares texts of one search only
    holes   spans [start, end) of tokens that are open: something else may stand there
    """

    tokens: tuple[int, ...]
    score: float
    holes: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A text, or the beginning of one, for a scorer to judge.

    prompt  ids of the prompt
    tokens  what follows it
    logs    [len(tokens)] log-probability of each of them
    whole   nothing follows: it ended, or has as many tokens as may come
    ends    tokens that end a text: they stand for no words
    text    ids to text; None where there is none
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logs: tuple[float, ...]
    whole: bool
    ends: frozenset[int] = frozenset()
    text: Decoder | None = None

    def read(self, who: str) -> tuple[str, str]:
        """(prompt, prompt and text) in words. Raises UserError for `who` where there are none."""
        if self.text is None:
            raise UserError(f"{who} judges words, and there are none: the model has no tokenizer.")
        whole = (*self.prompt, *self.tokens)
        prompt, all_ = (self.text(unmarked(self.text, ids, self.ends)) for ids in (self.prompt, whole))
        return prompt, all_


@dataclass(frozen=True, kw_only=True)
class ScorerKnob(Knob):
    """Settings of a scorer: what a search is to find. It stands in a field of the search."""

    @abstractmethod
    def score(self, candidate: Candidate) -> float:
        """In [0, 1], the larger the better; for a beginning, how well a text that begins so may do. Equal candidates
        score equally."""


class Ground(Protocol):
    """What a search has for one request."""

    @property
    def request(self) -> Request: ...

    @property
    def limit(self) -> int:
        """Tokens that may come, at least 1."""
        ...

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end a text; empty where the request ignores them."""
        ...

    @property
    def text(self) -> Decoder | None:
        """Ids to text; None where the loop was given none."""
        ...

    def open(self, held: Sequence[int] | None = None) -> Session:
        """A session of one row that holds `held`; by default the prompt less its last token, which is pending."""
        ...

    def advance(self, session: Session, texts: Sequence[Sequence[int]]) -> list[Doubles]:
        """Bring every row to the prompt and `texts[b]`: the shaped log-probabilities [V] of what follows, row by row.

        What the request's constraint forbids has probability 0.

        A row holds a beginning of that, at least a token short of it, and what it lacks is committed: one forward for
        all rows, more only where a row lacks more than fits.
        """
        ...

    def reach(self, session: Session, pasts: Sequence[Sequence[int]]) -> list[Floats | None]:
        """`advance` for any pasts, prompt and text: the model's own logits [V]; None where a row lacks nothing."""
        ...

    def forward(self, session: Session, nodes: Nodes, want: Want = Want()) -> Step:
        """`session.forward`, counted as a pass of the request. What a search runs, it runs through here."""
        ...

    def law(self, logits: Floats, past: Sequence[int]) -> Doubles:
        """The shaped log-probabilities [V] that logits [V] after `past` (prompt and text) mean."""
        ...


@dataclass(frozen=True, kw_only=True)
class SearchKnob(Knob):
    """Settings of a search. It calls the model through sessions alone: `fork` shares the prompt among its texts."""

    @abstractmethod
    def search(self, ground: Ground) -> list[Hypothesis]:
        """Different texts for the request, best first, at least one."""


@dataclass(slots=True, kw_only=True)
class Stats:
    """Counters of one request. Times are wall-clock seconds; in a batch a step's time is shared among its rows."""

    tokens: int = 0
    passes: int = 0
    drafted: int = 0
    accepted: int = 0
    histogram: dict[int, int] = field(default_factory=dict[int, int])
    prefill_s: float = 0.0
    decode_s: float = 0.0
    draft_s: float = 0.0
    forward_s: float = 0.0
    verify_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Tokens a request gained in one step: for streaming, and for showing which of them were drafted.

    drafted  how many of the first tokens were drafted
    source   which drafter; "" where none were
    text     what became certain with these tokens; may lag behind them, and may be empty
    """

    number: int
    tokens: tuple[int, ...]
    drafted: int
    source: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What came of a request.

    tokens  ids that came, the end token, and those that completed a stop string, included
    text    without the end token, and cut before the stop string
    finish  "eos", "stop", "length" or "context"
    found   all texts of a search, best first; empty where the plan does not search
    """

    request: Request
    tokens: tuple[int, ...]
    text: str
    finish: str
    pieces: tuple[Piece, ...]
    stats: Stats
    found: tuple[Hypothesis, ...] = ()


__all__ = [
    "About", "AcceptorKnob", "Candidate", "Completion", "Constraint", "ConstraintKnob", "Draft", "Drafter",
    "DrafterKnob", "Ground", "Hypothesis", "Piece", "Reader", "Request", "ScheduleKnob", "ScorerKnob", "SearchKnob",
    "Seen", "ShaperKnob", "Stats", "Step", "View",
]  # fmt: skip
