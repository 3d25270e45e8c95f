"""What both engines ask of KV before they take it out of a row or put it into one; see `core.Keeper`."""

from steno.core.errors import DataError, PromptError
from steno.core.stretch import Keeper, Stretch


def check_span(session: Keeper, row: int, start: int, stop: int | None) -> int:
    """The end of the span to store. Raises ValueError for one that a row cannot be stored by."""
    length = session.lengths[row]
    end = length if stop is None else stop
    if not 0 <= start <= end <= length:
        raise ValueError(f"row {row} holds {length} tokens, so {start} to {end} cannot be stored")
    if session.whole and (start, end) != (0, length):
        raise ValueError(f"row {row} is in a cache form, so it can be stored as a whole only")
    return end


def check_load(session: Keeper, row: int, stretch: Stretch, capacity: int) -> None:
    """Raise DataError where a stretch does not continue a row, PromptError where it outgrows it."""
    length = session.lengths[row]
    if stretch.start != length or stretch.stop < length or (session.whole and length):
        raise DataError(
            f"the stored tokens {stretch.start} to {stretch.stop} do not continue row {row}, which holds {length}"
        )
    check_room(row, length, stretch.stop - length, capacity)


def check_room(row: int, length: int, count: int, capacity: int) -> None:
    """Raise PromptError where a row would outgrow its capacity."""
    if length + count > capacity:
        came = f"row {row} would hold {length + count} tokens, its capacity is {capacity}"
        raise PromptError(f"{came}. Open the session larger.")
