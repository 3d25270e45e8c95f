"""`steno bench`: a method's defining comparison, written as evidence."""

import json
import sys
from pathlib import Path

import click

from ._options import force_option, json_option, read_plan, set_option


@click.command("bench")
@click.argument("name")
@click.option("--model", default="nib", help="A model folder, hub id, nib or table:VOCAB:SEED.")
@click.option("--prompts", "source", metavar="FILE", help="JSON lines or plain text, or - for stdin.")
@click.option("--max-tokens", type=click.IntRange(1), default=128, help="Tokens per prompt, where it names none.")
@click.option("--backend", default="auto", metavar="NAME", help="auto, native, hf or table.")
@set_option
@click.option("--out", metavar="FILE", help="Where the evidence goes; default docs/evidence/NAME.json, - for nowhere.")
@force_option
@json_option
def command(
    *,
    name: str,
    model: str,
    source: str | None,
    max_tokens: int,
    backend: str,
    sets: tuple[str, ...],
    out: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Compare the method NAME with its baseline in one process, and say whether what is claimed of it holds."""
    from steno.core.errors import KnobError, OutputError, nearest
    from steno.core.files import write_text
    from steno.core.index import methods

    known = methods()
    if name not in known:
        raise KnobError(f"there is no knob '{name}'. {nearest(name, known)} List them with: steno methods")
    path = None if out == "-" else Path(out) if out else Path("docs") / "evidence" / f"{name}.json"
    if path is not None and path.exists() and not force:
        raise OutputError(f"{path} exists. Replace it with --force, or name another file with --out.")
    settings = read_plan(None, sets)

    from steno.measure import to_plain
    from steno.models import ModelSpec
    from steno.tune.bench import bench
    from steno.tune.prompts import DEMO, parse, read

    table = model.startswith("table:")
    if source == "-":
        found = parse(sys.stdin.buffer.read(), "stdin")
    elif source is None and table:
        found = parse(b"3 1 4\n\n1 5 9\n\n2 6 5\n", "ids.txt")
    else:
        found = read(Path(source) if source else DEMO)
    click.echo(f"{name} on {model}, {len(found.prompts)} prompts", err=True)
    evidence = bench(name, ModelSpec(source=model, backend=backend), found, settings, max_tokens=max_tokens)
    text = json.dumps(to_plain(evidence), indent=1, ensure_ascii=False)
    if path is not None:
        write_text(path, text + "\n")
        click.echo(f"wrote {path}", err=True)
    if as_json:
        click.echo(text)
        return
    click.echo(f"{name}: {evidence.verdict}")
    if evidence.claimed:
        click.echo(f"claimed:  {evidence.claimed}")
    click.echo(f"measured: {evidence.measured}")
    click.echo(f"on:       {evidence.on}")
    for row in evidence.table:
        click.echo("  " + ", ".join(f"{key} {value}" for key, value in row.items()))
