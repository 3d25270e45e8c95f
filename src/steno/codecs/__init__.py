"""Symbols to bytes and back: integer frequencies, a range coder, an adaptive mixer, and the .sz container."""

from .base import Corrupt, LimitExceeded, Truncated, WrongModel
from .kinds import Kinds
from .neural import Neural
from .reader import Archive
from .writer import Writer

__all__ = ["Archive", "Corrupt", "Kinds", "LimitExceeded", "Neural", "Truncated", "Writer", "WrongModel"]
