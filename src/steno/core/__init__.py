"""Records and protocols that every room shares. Standard library only."""

from .card import Card, Keeps, weakest
from .errors import StenoError, UserError
from .index import knob_class, make_knob, methods
from .knob import Knob, OneOf, Span, Value, knob_name
from .plan import Plan
from .rng import Key
from .session import PAD, ROOT, Caps, Model, Nodes, Session, Step, Want
from .stretch import Keeper, Storable, Stretch
from .tier import CacheSpec, KVShape, Layout, Rope, Tier, room

__all__ = [
    "PAD",
    "ROOT",
    "CacheSpec",
    "Caps",
    "Card",
    "KVShape",
    "Keeper",
    "Keeps",
    "Key",
    "Knob",
    "Layout",
    "Model",
    "Nodes",
    "OneOf",
    "Plan",
    "Rope",
    "Session",
    "Span",
    "StenoError",
    "Step",
    "Storable",
    "Stretch",
    "Tier",
    "UserError",
    "Value",
    "Want",
    "knob_class",
    "knob_name",
    "make_knob",
    "methods",
    "room",
    "weakest",
]
