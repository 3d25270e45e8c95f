"""The record of a race as Markdown: for the terminal and for the README."""

from collections.abc import Iterable, Sequence
from typing import Any

from . import floors
from .floors import over

SPEED = (
    "shape",
    "arm",
    "ms/token",
    "x steno",
    "x roofline",
    "prefill/s",
    "batch 8",
    "at 4k",
    "start s",
    "load s",
    "MB",
)
COST = ("shape", "arm", "t(1) ms", "t(2)", "t(4)", "t(8)", "t(16)", "t(32)")
REPLAY = ("shape", "text", "arm", "tokens/s", "x its plain", "tokens per pass", "accepted")
FLOOR = ("floor", "shape", "wanted", "measured", "")


def render(record: dict[str, Any]) -> str:
    """All tables of a record, with a line on what they were taken on."""
    parts = [_speed(record), _cost(record), _replay(record), _floors(record)]
    return "\n\n".join([part for part in parts if part] + [summary(record)])


def readme(record: dict[str, Any]) -> str:
    """The tables of the README, with the machine they are from."""
    machine = record["machine"]
    on = f"{machine['cpu']}, {record['threads']} threads, {machine['isa'] or 'x86-64'}; commit {record['commit']}."
    return "\n\n".join(part for part in (on, _speed(record), _cost(record), _replay(record), summary(record)) if part)


def summary(record: dict[str, Any]) -> str:
    """One line that counts what was met and what was missed."""
    verdicts = floors.judge(record)
    met, missed = (sum(v.met is state for v in verdicts) for state in (True, False))
    return f"Floors: {met} met, {missed} missed, {len(verdicts) - met - missed} not measured."


def _speed(record: dict[str, Any]) -> str:
    lines = []
    for shape, found in record.get("shapes", {}).items():
        rows = found["rows"]
        for name, row in rows.items():
            ours = rows.get(_ours(name), {}).get("ms")
            lines.append(
                (
                    shape,
                    name,
                    _number(row.get("ms")),
                    _times(over(row.get("ms"), ours)),
                    _times(over(row.get("ms"), row.get("roof_ms"))),
                    _whole(row.get("prefill_per_s")),
                    _number(row.get("batch_ms")),
                    _number(row.get("long_ms")),
                    _number(row.get("first_s")),
                    _number(row.get("load_s")),
                    _whole(row["peak_bytes"] / 1e6),
                )
            )
    return _table(SPEED, lines)


def _cost(record: dict[str, Any]) -> str:
    lines = []
    for shape, found in record.get("shapes", {}).items():
        for name, row in found["rows"].items():
            widths = row.get("width_ms")
            if widths:
                rest = (_times(over(widths.get(w), widths["1"])) for w in ("2", "4", "8", "16", "32"))
                lines.append((shape, name, _number(widths["1"]), *rest))
    return _table(COST, lines)


def _replay(record: dict[str, Any]) -> str:
    lines = []
    for shape, found in record.get("replay", {}).items():
        for kind, arms in [*found["kinds"].items(), ("all", found["total"])]:
            for name, tally in arms.items():
                rate = tally["tokens"] / tally["seconds"]
                plain = arms.get(f"{name.rpartition(' ')[0]} plain")
                own = plain and rate * plain["seconds"] / plain["tokens"]
                share = over(tally["accepted"], tally["drafted"])
                lines.append(
                    (
                        shape,
                        kind,
                        f"{name} {found['form']}" if name.startswith("steno") else name,
                        f"{rate:,.1f}",
                        _times(own),
                        f"{tally['tokens'] / tally['passes']:.2f}",
                        "-" if share is None else f"{100 * share:.0f} %",
                    )
                )
    return _table(REPLAY, lines)


def _floors(record: dict[str, Any]) -> str:
    words = {True: "met", False: "MISSED", None: "not measured"}
    return _table(
        FLOOR,
        [
            (
                v.floor.what,
                v.floor.shape,
                f"at {'most' if v.floor.most else 'least'} {v.floor.limit:g}",
                "-" if v.value is None else f"{v.value:.2f}",
                words[v.met],
            )
            for v in floors.judge(record)
        ],
    )


def _ours(name: str) -> str:
    """steno's row of as many bits."""
    like = {"f32": "fp32", "float32": "fp32", "q8_0": "int8", "q4_0": "int4", "q4_0+q8_0": "int4"}
    form = name.rsplit(maxsplit=1)[-1]
    return f"steno {like.get(form, form)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    body = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([f"| {' | '.join(heads)} |", "|" + "---|" * len(heads), *body]) if body else ""
