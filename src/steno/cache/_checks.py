"""Rules that hold between two fields of a form."""

from steno.core.errors import KnobError

from .base import CacheKnob


def at_most(knob: CacheKnob, field: str, other: str) -> None:
    """Raise KnobError where `field` is above `other`, both whole numbers."""
    value, limit = getattr(knob, field), getattr(knob, other)
    if value > limit:
        raise KnobError(
            f"{knob.name}: {field} must be at most {other} ({limit}), got {value}. "
            f"Set it with --set {knob.name}.{field}={limit}"
        )
