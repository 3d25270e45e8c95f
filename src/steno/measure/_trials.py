"""Records of a search: prompts, trials, peers, the whole run. See `base` for units."""

from dataclasses import dataclass, field
from enum import StrEnum

from steno.core import Keeps

from ._figures import Bytes, Fidelity, Machine, Speed


@dataclass(frozen=True, kw_only=True)
class Span:
    """Text that came out of one pass of the model: the first `drafted` of its `tokens` ids were drafted by `source`."""

    text: str
    tokens: int
    drafted: int = 0
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """One prompt under one plan.

    tokens        ids emitted; `base_tokens` by the baseline
    base_per_s    tokens per second of the baseline, prefill included
    per_s         of the plan
    identical     same ids as the baseline; None where it was not compared
    divergence    first position that differs; the shorter length where one is a prefix of the other
    histogram     accepted drafts per pass -> passes
    spans         the text, pass by pass, for colouring
    """

    name: str
    category: str = ""
    prompt_tokens: int = 0
    tokens: int = 0
    base_tokens: int = 0
    base_per_s: float = 0.0
    per_s: float = 0.0
    identical: bool | None = None
    divergence: int | None = None
    finish: str = ""
    passes: int = 0
    drafted: int = 0
    accepted: int = 0
    histogram: dict[int, int] = field(default_factory=dict[int, int])
    spans: tuple[Span, ...] = ()

    @property
    def speedup(self) -> float:
        """How many times the baseline's rate; 0 where one was not measured."""
        return self.per_s / self.base_per_s if self.base_per_s else 0.0

    @property
    def tokens_per_pass(self) -> float:
        return self.tokens / self.passes if self.passes else 0.0


class Outcome(StrEnum):
    """What became of a trial.

    BEST     chosen
    KEPT     within the limits, and not the fastest
    SLOWER   given up: its interval lies below the leader's
    CHANGED  gives other ids than it promised: a defect of the method, worth a report
    BREACH   over a limit that was asked for (KL, bytes)
    FAILED   ended in an error
    """

    BEST = "best"
    KEPT = "kept"
    SLOWER = "slower"
    CHANGED = "changed"
    BREACH = "breach"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One plan, measured.

    plan     the plan as TOML
    keeps    what the plan promises
    reason   one sentence for a reader: why this outcome
    seconds  what the trial cost
    """

    label: str
    plan: str
    keeps: Keeps
    outcome: Outcome
    reason: str = ""
    speed: Speed | None = None
    fidelity: Fidelity | None = None
    bytes: Bytes | None = None
    rows: tuple[PromptRow, ...] = ()
    seconds: float = 0.0

    @property
    def compared(self) -> int:
        """Prompts whose ids were compared with the baseline's."""
        return sum(row.identical is not None for row in self.rows)

    @property
    def identical(self) -> int:
        """Those of them with the same ids."""
        return sum(row.identical is True for row in self.rows)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Another engine on the same ids in the same race. `identical` of `compared` prompts gave the baseline's ids."""

    name: str
    version: str
    speed: Speed
    identical: int
    compared: int
    notes: str = ""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything a report needs.

    fingerprint  of the model: equal ones give equal logits
    weights      number form the model ran in
    keep         the level that was asked for
    prompts      where they came from
    baseline     plain decoding of the same weights on the same backend: the race's first arm
    best         index into `trials`; None where none beat the baseline
    started      UTC, ISO 8601
    """

    model: str
    backend: str
    weights: str
    fingerprint: str
    keep: Keeps
    prompts: str
    num_prompts: int
    max_tokens: int
    seed: int
    machine: Machine
    baseline: Trial
    peers: tuple[Peer, ...] = ()
    trials: tuple[Trial, ...] = ()
    best: int | None = None
    started: str = ""
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
