"""The floors: what the engine is held to, in one place. A figure that was not taken is neither met nor missed."""

from dataclasses import dataclass
from typing import Any

Rows = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Floor:
    """`figure` on `shape` has to be at least `limit`, or at most where `most`."""

    what: str
    shape: str
    limit: float
    most: bool = False


@dataclass(frozen=True)
class Verdict:
    """`value` None: not measured, so `met` is None as well."""

    floor: Floor
    value: float | None

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value <= self.floor.limit if self.floor.most else self.value >= self.floor.limit


INT8 = "steno int8 over llama.cpp q8_0, decoding"
INT4 = "steno int4 over llama.cpp q4_0 with an 8-bit head, decoding"
ROOF = "steno int8, time over roofline"
WIDE = "steno int8, t(8)/t(1)"
PREFILL = "steno int8 over llama.cpp q8_0, prefill"
MEMORY = "steno int8, peak memory over weights + KV"
SAMPLING = "steno int8, sampled step over greedy step"
REPLAY = "tuned steno over llama.cpp's plain decoding, recorded text"
NGRAM = "tuned steno over llama.cpp's n-gram speculation, recorded text"

PLAIN, DRAFTED = "llama.cpp plain", "llama.cpp n-gram"

FLOORS = (
    *(Floor(INT8, shape, limit) for shape, limit in (("15M", 4.5), ("110M", 1.8), ("500M", 1.3))),
    *(Floor(INT4, shape, limit) for shape, limit in (("15M", 4.5), ("110M", 1.5), ("500M", 1.15))),
    *(Floor(ROOF, shape, 1.25, most=True) for shape in ("110M", "500M", "1.1B")),
    *(Floor(WIDE, shape, limit, most=True) for shape, limit in (("110M", 2.2), ("500M", 1.8))),
    *(Floor(PREFILL, shape, 2.0) for shape in ("15M", "110M", "500M")),
    *(Floor(MEMORY, shape, 1.1, most=True) for shape in ("110M", "500M", "1.1B")),
    *(Floor(SAMPLING, shape, 1.05, most=True) for shape in ("110M", "500M")),
    *(Floor(REPLAY, shape, 4.0) for shape in ("110M", "500M")),
    *(Floor(NGRAM, shape, 2.0) for shape in ("110M", "500M")),
)


def judge(record: dict[str, Any]) -> list[Verdict]:
    """Every floor against a record of the race."""
    return [Verdict(floor, figure(record, floor)) for floor in FLOORS]


def figure(record: dict[str, Any], floor: Floor) -> float | None:
    """The figure a floor speaks of, None where it was not taken."""
    if floor.what in (REPLAY, NGRAM):
        replay = record.get("replay", {}).get(floor.shape)
        return replay and ratio(replay["total"], "steno tuned", PLAIN if floor.what == REPLAY else DRAFTED)
    rows: Rows = record.get("shapes", {}).get(floor.shape, {}).get("rows", {})
    ours, peer = rows.get("steno int8", {}), rows.get("llama.cpp q8_0", {})
    if floor.what == INT4:
        four = [row for name, row in rows.items() if name.startswith("steno int4") and "ms" in row]
        ours, peer = min(four, key=lambda row: row["ms"], default={}), rows.get("llama.cpp q4_0+q8_0", {})
    if floor.what in (INT8, INT4):
        return over(peer.get("ms"), ours.get("ms"))
    if floor.what == ROOF:
        return over(ours.get("ms"), ours.get("roof_ms"))
    if floor.what == WIDE:
        widths = ours.get("width_ms", {})
        return over(widths.get("8"), widths.get("1"))
    if floor.what == PREFILL:
        return over(ours.get("prefill_per_s"), peer.get("prefill_per_s"))
    if floor.what == SAMPLING:
        return over(ours.get("sampled_ms"), ours.get("greedy_ms"))
    return over(ours.get("held_bytes"), ours.get("needed_bytes"))


def over(one: float | None, other: float | None) -> float | None:
    """one / other, None where either is missing."""
    return one / other if one is not None and other else None


def ratio(total: dict[str, dict[str, float]], ours: str, peer: str) -> float | None:
    """Tokens per second of one arm of a replay over those of another."""
    rates = {name: t["tokens"] / t["seconds"] for name, t in total.items()}
    return over(rates.get(ours), rates.get(peer))
