"""What a plan changed: speed, memory, fidelity, and the conformance kit that proves a promise."""

from ._json import from_json, from_plain, to_json, to_plain
from .base import (
    Bytes,
    Check,
    Fidelity,
    Machine,
    Outcome,
    Peer,
    PromptRow,
    Run,
    Span,
    Speed,
    Status,
    Trial,
    Verdict,
)

__all__ = [
    "Bytes",
    "Check",
    "Fidelity",
    "Machine",
    "Outcome",
    "Peer",
    "PromptRow",
    "Run",
    "Span",
    "Speed",
    "Status",
    "Trial",
    "Verdict",
    "from_json",
    "from_plain",
    "to_json",
    "to_plain",
]
