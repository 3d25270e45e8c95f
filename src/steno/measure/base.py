"""The records of this room: what was measured, on what, against what. `tune`, the report and `--json` print these.

Every record is frozen and plain: numbers, strings, tuples, and records of them. `_json.to_json` and `from_json` carry
them to files and back. Times are seconds of wall clock, rates are per second, sizes are bytes, KL is in nats; a share
lies in [0, 1]. None stands for "not measured" or "does not exist", never for zero.
"""

from ._figures import Bytes, Fidelity, Machine, Speed
from ._trials import Outcome, Peer, PromptRow, Run, Span, Trial
from ._verdict import Check, Status, Verdict

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
]
