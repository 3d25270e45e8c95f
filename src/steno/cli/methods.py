"""`steno methods`: the catalogue, from the committed index; nothing is imported to list it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ._options import json_option

if TYPE_CHECKING:
    from steno.core.index import Entry


@click.command("methods")
@click.argument("name", required=False)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List the methods: what each keeps, where it runs, its paper, and what our own measurements say of it."""
    from steno.core.errors import KnobError, nearest
    from steno.core.index import methods

    known = methods()
    if name is not None and name not in known:
        raise KnobError(f"there is no knob '{name}'. {nearest(name, known)} List them with: steno methods")
    rows = {n: _row(n, e) for n, e in known.items() if name is None or n == name}
    if as_json:
        click.echo(json.dumps(rows[name] if name else rows, indent=1, ensure_ascii=False))
    elif name:
        _page(name, rows[name])
    else:
        _table(rows)


def evidence(name: str) -> dict[str, object] | None:
    """The committed evidence of a method, where this is a source checkout that has it."""
    path = Path(__file__).resolve().parents[3] / "docs" / "evidence" / f"{name}.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def _row(name: str, entry: "Entry") -> dict[str, object]:
    card = entry["card"]
    found = evidence(name)
    return {
        "name": name,
        "doc": entry["doc"],
        "keeps": card.get("keeps", "near"),
        "task": card.get("task", False),
        "backends": _words(card.get("backends", ("table", "hf", "native"))),
        "paper": card.get("paper", ""),
        "needs": _words(card.get("needs", ())),
        "breaks": _words(card.get("breaks", ())),
        "fields": entry["fields"],
        "evidence": found,
        "verdict": found.get("verdict", "") if found else "",
    }


def _table(rows: dict[str, dict[str, object]]) -> None:
    """Plain aligned columns: it is read by people and by `awk` alike."""
    heads = ("NAME", "KEEPS", "BACKENDS", "EVIDENCE", "PAPER")
    lines = [
        (
            name,
            "(task)" if row["task"] else str(row["keeps"]),
            ",".join(_words(row["backends"])),
            str(row["verdict"]) or "-",
            str(row["paper"]) or "-",
        )
        for name, row in rows.items()
    ]
    widths = [max(len(line[i]) for line in (heads, *lines)) for i in range(4)]
    for line in (heads, *lines):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)) + f"  {line[4]}")


def _page(name: str, row: dict[str, object]) -> None:
    click.echo(f"{name}\n  {row['doc']}\n")
    for key in ("keeps", "backends", "paper", "needs", "breaks"):
        text = ", ".join(_words(row[key]))
        click.echo(f"  {key:<9} {text or '-'}")
    click.echo(f"  {'evidence':<9} {row['verdict'] or 'not measured yet: steno bench ' + name}")
    fields = row["fields"]
    if isinstance(fields, dict) and fields:
        click.echo("\n  fields")
        for field, (note, default) in fields.items():
            click.echo(f"    {field} = {default or '(required)'}   {note}")


def _words(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list | tuple) else [str(value)] if value else []
