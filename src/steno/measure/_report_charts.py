"""The report's pictures: SVG in percentages, so that they follow the page's width while their letters keep their size.

Every function returns markup; every text given to it is escaped here. Colours are classes of `_report_style.css`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from html import escape
from math import ceil, floor, log10

TICKS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
"""Steps within a decade of a speed-up axis."""


LEAST_KL = 1e-9
"""Nats below which two laws are drawn as one."""

ORDER = ("trial", "peer", "base", "best")
"""Kinds of marks, what is drawn last lying on top."""


class Zone(StrEnum):
    """Where a mark belongs: output promised and found the same, a measured KL, or other ids for another reason."""

    SAME = "same"
    KL = "kl"
    OTHER = "other"


ZONE_NAMES = {
    Zone.SAME: "same output",
    Zone.KL: "approximate: KL per token, in nats",
    Zone.OTHER: "other arithmetic: some ids differ",
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """A mark of the speed-fidelity picture; `kl` counts in its zone only."""

    label: str
    speedup: float
    zone: Zone
    kind: str
    note: str
    kl: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One prompt's speed-up."""

    label: str
    group: str
    speedup: float
    same: bool | None


@dataclass(frozen=True, kw_only=True)
class Part:
    """One piece of a stacked bar."""

    label: str
    size: int


class Log:
    """A logarithmic axis from values to percentages, with room at both ends and round ticks."""

    def __init__(self, values: Sequence[float], must: Sequence[float] = ()) -> None:
        usable = [v for v in (*values, *must) if v > 0] or [1.0]
        low, high = log10(min(usable)), log10(max(usable))
        margin = max(0.05, 0.06 * (high - low))
        if high - low < 0.25:
            margin = (0.25 - (high - low)) / 2 + 0.05
        self.low, self.high = low - margin, high + margin

    def place(self, value: float) -> float:
        """Percentage along the axis; what lies beyond an end is put on it."""
        share = (log10(max(value, 1e-300)) - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, share)), 2)

    def ticks(self, most: int = 7) -> list[float]:
        """Round values within the axis, thinned to at most `most`."""
        for steps in (TICKS, (1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
            decades = range(floor(self.low) - 1, ceil(self.high) + 1)
            found = [s * 10.0**d for d in decades for s in steps if self.low <= log10(s) + d <= self.high]
            if len(found) <= most:
                return found
        return found[:: -(-len(found) // most)]


def scatter(points: Sequence[Point]) -> str:
    """Speed-up against fidelity, in up to three zones: identical output on top, measured KL, and other ids below."""
    across = Log([p.speedup for p in points], must=[1.0])
    zones = [(kind, [p for p in points if p.zone == kind]) for kind in Zone]
    kls = [max(p.kl, LEAST_KL) for p in points if p.zone is Zone.KL]
    up = Log(kls)
    out: list[str] = []
    y = 0
    for zone, members in zones:
        if not members and zone is not Zone.SAME:
            continue
        height = {Zone.SAME: 150, Zone.KL: 230, Zone.OTHER: 76}[zone]
        out.append(f'<rect class="band {zone.value}" x="0" y="{y}" width="100%" height="{height}"/>')
        out.append(f'<text class="axis" x="10" y="{y + 18}">{ZONE_NAMES[zone]}</text>')
        if zone is Zone.KL:
            for tick in up.ticks(5):
                at = y + 36 + (height - 52) * up.place(tick) / 100
                out.append(f'<line class="grid" x1="0" x2="100%" y1="{at:.0f}" y2="{at:.0f}"/>')
                out.append(f'<text class="axis end" x="-8" y="{at + 4:.0f}">{tick:.0e}</text>')
        lanes = _lanes(members, across)
        for point in sorted(members, key=lambda p: ORDER.index(p.kind)):
            middle = y + height // 2 + 6 + 17 * lanes[id(point)]
            at = y + 36 + (height - 52) * up.place(max(point.kl, LEAST_KL)) / 100 if zone is Zone.KL else middle
            out.append(_mark(point, across.place(point.speedup), at))
        y += height + 8
    grid = [
        f'{_rule(t, across, str(y - 8))}<text class="axis mid" x="{across.place(t)}%" y="{y + 12}">{times(t)}</text>'
        for t in across.ticks()
    ]
    # Zones first, then the grid, then the marks on top of both.
    below = [item for item in out if item.startswith("<rect")]
    above = [item for item in out if not item.startswith("<rect")]
    head = f'<svg height="{y + 16}" role="img" aria-label="speed-up against fidelity">'
    return head + "".join(below + grid + above) + "</svg>"


def dots(rows: Sequence[Dot], most: int = 40) -> str:
    """Speed-up per prompt: a line each where they are few, a strip per group where they are many."""
    across = Log([r.speedup for r in rows], must=[1.0])
    groups = list(dict.fromkeys(r.group for r in rows))
    ticks = "".join(_rule(t, across, "100%") for t in across.ticks())
    labels = "".join(f'<span style="left:{across.place(t)}%">{times(t)}</span>' for t in across.ticks())
    out = ['<div class="rows">']
    for number, group in enumerate(groups):
        members = [r for r in rows if r.group == group]
        if len(groups) > 1 or group:
            out.append(f'<div class="rowgroup">{safe(group or "other")}</div>')
        strips = [(r.label, [r]) for r in members] if len(rows) <= most else [(_count(members), members)]
        for label, strip in strips:
            marks = "".join(
                f'<circle class="g{number % 6}{"" if r.same is not False else " differs"}" r="5" '
                f'cx="{across.place(r.speedup)}%" cy="50%"><title>{safe(r.label)}: {times(r.speedup)}'
                f"{_same(r.same)}</title></circle>"
                for r in strip
            )
            one = across.place(1.0)
            x = across.place(strip[0].speedup)
            stem = f'<line class="stem" x1="{one}%" x2="{x}%" y1="50%" y2="50%"/>' if len(strip) == 1 else ""
            value = times(_median([r.speedup for r in strip]))
            out.append(
                f'<div class="row"><span class="name" title="{safe(label)}">{safe(label)}</span>'
                f'<svg class="strip">{ticks}{stem}{marks}</svg><span class="value">{value}</span></div>'
            )
    out.append(
        f'<div class="row foot"><span class="name"></span><span class="ticks">{labels}</span><span></span></div>'
    )
    return "".join(out) + "</div>"


def bars(counts: dict[int, int]) -> str:
    """A histogram of accepted drafts per pass; long tails are gathered in the last bar."""
    if not counts:
        return '<p class="quiet">The best plan drafts nothing, so there is nothing to accept.</p>'
    last = max(counts)
    edge = last if last <= 16 else 16
    binned = {
        i: sum(c for k, c in counts.items() if (k == i if i < edge or last == edge else k >= i))
        for i in range(edge + 1)
    }
    total = sum(binned.values()) or 1
    peak = max(binned.values()) or 1
    out = ['<div class="bars">']
    for i, count in binned.items():
        label = f"{i}+" if i == edge and last > edge else str(i)
        share = 100 * count / total
        out.append(
            f'<div title="{count} passes accepted {label} drafted tokens">'
            f'<em>{share:.0f}%</em><i style="height:{150 * count / peak:.1f}px"></i><b>{label}</b></div>'
        )
    return "".join(out) + "</div>"


def stack(rows: Sequence[tuple[str, Sequence[Part]]]) -> str:
    """Bytes by part, one bar per row, all on one scale."""
    largest = max((sum(p.size for p in parts) for _, parts in rows), default=0) or 1
    names = list(dict.fromkeys(p.label for _, parts in rows for p in parts if p.size))
    out = ['<div class="stack">']
    for title, parts in rows:
        total = sum(p.size for p in parts)
        pieces = "".join(
            f'<i class="p{names.index(p.label) % 6}" style="width:{100 * p.size / largest:.3f}%" '
            f'title="{safe(p.label)}: {size(p.size)}"></i>'
            for p in parts
            if p.size
        )
        out.append(
            f'<div class="bar"><b>{safe(title)}</b><span class="track">{pieces}</span><em>{size(total)}</em></div>'
        )
    keys = "".join(f'<span><i class="p{i % 6}"></i>{safe(name)}</span>' for i, name in enumerate(names))
    return "".join(out) + f'</div><p class="legend">{keys}</p>'


def safe(text: str) -> str:
    """Escaped text; control characters become their pictures, which a browser would else drop or misread."""
    return escape("".join(chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\n\t" else c for c in text))


def times(value: float) -> str:
    """A ratio as people write it: `1×`, `2.35×`, `12.4×`, `140×`.

    >>> times(1.0), times(2.346), times(12.44), times(140.4)
    ('1×', '2.35×', '12.4×', '140×')
    """
    digits = 2 if value < 10 else 1 if value < 100 else 0
    text = f"{value:.{digits}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) + "×"


def size(count: float) -> str:
    """Bytes in decimal units: `15.9 MB`."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def _mark(point: Point, x: float, y: float) -> str:
    title = f"<title>{safe(point.label)}\n{safe(point.note)}</title>"
    if point.kind == "peer":
        shape = f'<svg x="{x}%" y="{y:.0f}"><path class="peer" d="M0-7 7 0 0 7-7 0Z">{title}</path></svg>'
    else:
        radius = {"best": 9, "base": 6}.get(point.kind, 5)
        shape = f'<circle class="{point.kind}" cx="{x}%" cy="{y:.0f}" r="{radius}">{title}</circle>'
    if point.kind == "trial":
        return shape
    # The two labels that are always there stand above and below their marks, so that they pass each other on a phone.
    side = "end" if x > 50 else ""
    dx, dy = {"base": (0, -13), "best": (0, 28)}.get(point.kind, (-14 if side else 14, 4))
    anchor = "mid" if point.kind == "base" else side
    name = safe(_short(point.label))
    return f'{shape}<text class="mark {anchor}" x="{x}%" y="{y:.0f}" dx="{dx}" dy="{dy}">{name}</text>'


def _rule(tick: float, across: Log, height: str) -> str:
    x = across.place(tick)
    return f'<line class="{"one" if tick == 1 else "grid"}" x1="{x}%" x2="{x}%" y1="0" y2="{height}"/>'


def _lanes(points: Sequence[Point], across: Log) -> dict[int, int]:
    """Vertical steps, 0, 1, -1, 2, ..., that keep marks of nearly equal speed and their labels apart."""
    out: dict[int, int] = {}
    taken: list[tuple[float, float, int]] = []
    for point in sorted(points, key=lambda p: -ORDER.index(p.kind)):
        x = across.place(point.speedup)
        reach = 0.0 if point.kind == "trial" else 3.0 + 1.1 * min(len(point.label), 34)
        low, high = (x - reach - 1.2, x + 1.2) if x > 50 else (x - 1.2, x + reach + 1.2)
        step = 0
        for step in (0, 1, -1, 2, -2, 3, -3):
            if all(high < left or low > right or step != lane for left, right, lane in taken):
                break
        out[id(point)] = step
        taken.append((low, high, step))
    return out


def _short(text: str, most: int = 34) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _count(rows: Sequence[Dot]) -> str:
    return f"{len(rows)} prompt{'' if len(rows) == 1 else 's'}, median"


def _same(same: bool | None) -> str:
    return "" if same is None else ", identical" if same else ", not identical"


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
