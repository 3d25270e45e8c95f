"""Smaller memory: what becomes of the keys and values of committed tokens.

A cache form is a knob. It says which tokens are due to leave a session's open buffer, which of them a query may see,
and opens the `Tier` that holds them. `Model.open(batch, capacity, cache=form)` puts it to work.
"""

from .base import CacheKnob

__all__ = ["CacheKnob"]
