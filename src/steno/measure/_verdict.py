"""Records of the conformance kit: a check, and what all checks say together."""

from dataclasses import dataclass, field
from enum import StrEnum

from steno.core import Keeps


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
