"""Smaller parameters: a method reads a model folder and writes another that stock transformers loads."""

from ._ledger import Ledger
from .base import WeightsKnob

__all__ = ["Ledger", "WeightsKnob"]
