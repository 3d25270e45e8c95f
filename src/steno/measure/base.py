"""The records of this room: what was measured, on what, against what. `tune`, the report and `--json` print these.

Every record is frozen and plain: numbers, strings, tuples, and records of them. `_json.to_json` and `from_json` carry
them to files and back. Times are seconds of wall clock, rates are per second, sizes are bytes, KL is in nats; a share
lies in [0, 1]. None stands for "not measured" or "does not exist", never for zero.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from steno.core import Keeps


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where figures were taken.

    cores     logical cores this process may use
    gpu       name of the accelerator in use; "" for none
    isa       instruction set of the native engine ("avx512-vnni"); "" where it is not built
    versions  of steno, torch, transformers, numpy, as far as installed
    threads   compute threads of the model
    """

    cpu: str
    cores: int
    memory_bytes: int
    gpu: str
    os: str
    python: str
    versions: dict[str, str]
    isa: str = ""
    threads: int = 0


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """A candidate against the baseline, teacher-forced on the same ids, and their greedy continuations.

    texts, tokens  texts, and positions compared over all of them
    exact          KL over the whole vocabulary; else exact on the union of both top-`top` sets plus one bucket for the
                   tail, which can only be *lower* than the whole (data-processing inequality)
    kl_*           KL(baseline || candidate) per token: mean, its 95 % bootstrap interval over texts, percentiles
    top1           share of positions with the same best id
    unit           "byte" or "token": what the bits are counted per
    bits_base      cross-entropy of the text under the baseline, in bits per unit
    bits_plan      the same under the candidate
    bits_delta     bits_plan - bits_base, paired
    bits_error     standard error of bits_delta over texts; None for a single text
    divergence     per text the first position at which the greedy continuations differ; None where they do not
    continued      tokens each continuation was compared over; 0: no continuation was made
    """

    texts: int
    tokens: int
    exact: bool
    top: int
    kl_mean: float
    kl_low: float
    kl_high: float
    kl_p50: float
    kl_p90: float
    kl_p99: float
    kl_max: float
    top1: float
    unit: str
    bits_base: float
    bits_plan: float
    bits_delta: float
    bits_error: float | None
    divergence: tuple[int | None, ...] = ()
    continued: int = 0

    @property
    def identical(self) -> int:
        """Texts whose greedy continuations are the same ids."""
        return sum(at is None for at in self.divergence)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One arm of a race. Totals are sums over prompts of each prompt's median, so every rate is tokens over seconds.

    tokens        ids emitted, counted the same way for all arms
    prefill_s     until the model could emit the first token
    decode_s      the rest
    decoded       ids whose making lies in `decode_s` (one per prompt fewer where prefill already yields the first)
    ratio         tokens per second over those of the race's first arm: prefill and decode together
    ratio_low, ratio_high  its 95 % interval: bootstrap over prompts, and over repeats within a prompt
    repeats       timed passes per prompt; warm-up is not among them
    foreign       share of the machine's processor time that other processes took meanwhile; None: not known
    """

    name: str
    prompts: int
    prompt_tokens: int
    tokens: int
    decoded: int
    prefill_s: float
    decode_s: float
    ratio: float
    ratio_low: float
    ratio_high: float
    repeats: int
    foreign: float | None = None

    @property
    def tokens_per_s(self) -> float:
        """Emitted ids over the whole time."""
        return _rate(self.tokens, self.prefill_s + self.decode_s)

    @property
    def decode_per_s(self) -> float:
        """Emitted ids over the time after prefill."""
        return _rate(self.decoded, self.decode_s)

    @property
    def prefill_per_s(self) -> float:
        """Prompt ids over the time of prefill."""
        return _rate(self.prompt_tokens, self.prefill_s)

    @property
    def ms_per_token(self) -> float:
        """Whole time over emitted ids, in milliseconds."""
        return 1e3 * (self.prefill_s + self.decode_s) / self.tokens if self.tokens else 0.0

    @property
    def noisy(self) -> bool:
        """True where others took more than a tenth of the machine: figures to be taken again."""
        return self.foreign is not None and self.foreign > 0.1


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """Memory, read from live storages.

    weights         each storage once
    cache           live KV by part
    cache_tokens    *logical* tokens the cache stood for when it was read, over all rows
    bits_per_value  bits of the cache per key or value number of those tokens, metadata included; None: KV shape unknown
    process_peak    highest resident size of the whole process so far
    files           model files by part: weights, tokenizer, config, other
    """

    weights: int
    cache: dict[str, int] = field(default_factory=dict[str, int])
    cache_tokens: int = 0
    bits_per_value: float | None = None
    process_peak: int | None = None
    files: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def cache_total(self) -> int:
        return sum(self.cache.values())

    @property
    def total(self) -> int:
        """Weights and cache."""
        return self.weights + self.cache_total


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


class Status(StrEnum):
    """What a check of the conformance kit found. A check that does not apply says why."""

    PASS = "pass"
    FAIL = "fail"
    SKIP = "not applicable"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One named check.

    rule    what has to hold, in one sentence
    detail  where it first failed (prompt, row, position, expected, got), or why it does not apply
    cases   comparisons made
    """

    name: str
    rule: str
    status: Status
    detail: str = ""
    cases: int = 0
    numbers: dict[str, float] = field(default_factory=dict[str, float])
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What `verify` found of one plan on one model."""

    model: str
    backend: str
    fingerprint: str
    plan: str
    keeps: Keeps
    checks: tuple[Check, ...]
    covered: str
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """No check failed, and at least one was made."""
        states = [check.status for check in self.checks]
        return Status.FAIL not in states and Status.PASS in states

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.status is Status.FAIL)


def _rate(count: float, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0
