"""Fewer forwards for the same text: drafts, how they are accepted, and how logits are shaped.

`generate` continues a list of requests; `Loop` is the same for streaming. See `base` for the protocols.
"""

from ._budget import CostTable
from .base import Completion, Piece, Request, Stats
from .loop import Loop, generate

__all__ = ["Completion", "CostTable", "Loop", "Piece", "Request", "Stats", "generate"]
