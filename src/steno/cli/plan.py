"""`steno plan check | show`: what a plan promises and whether its knobs fit together. Loads no model and no torch."""

import json

import click

from ._options import json_option, read_plan, set_option

BACKENDS = ("native", "hf", "table")


@click.group("plan")
def command() -> None:
    """Check or show a plan."""


@command.command()
@click.argument("file")
@set_option
@click.option("--backend", default="", metavar="NAME", help="Check for one backend: native, hf or table.")
@click.option("--keep", type=click.Choice(["bits", "tokens", "law", "near"]), help="The least the plan must keep.")
@json_option
def check(*, file: str, sets: tuple[str, ...], backend: str, keep: str | None, as_json: bool) -> None:
    """Say whether the knobs of FILE (- is stdin) fit together; exit 2 where they do not."""
    from steno.core import Keeps
    from steno.core.errors import PlanError, nearest

    if backend and backend not in BACKENDS:
        raise PlanError(f"there is no backend '{backend}'. {nearest(backend, BACKENDS)}")
    plan = read_plan(file, sets)
    try:
        plan.check(backend, Keeps(keep) if keep else None)
    except PlanError as error:
        if as_json:
            click.echo(json.dumps({"fits": False, "problems": str(error).splitlines()[1:], "keeps": plan.keeps.value}))
        raise
    runs = [name for name in BACKENDS if not plan.clashes(name)]
    if as_json:
        click.echo(json.dumps({"fits": True, "problems": [], "keeps": plan.keeps.value, "backends": runs}))
        return
    count = len(plan.knobs)
    click.echo(
        f"{count} knob{'' if count == 1 else 's'}, keeps {plan.keeps.value}, runs on: {', '.join(runs) or 'no backend'}"
    )


@command.command()
@click.argument("file")
@set_option
@json_option
def show(*, file: str, sets: tuple[str, ...], as_json: bool) -> None:
    """Print the plan in FILE (- is stdin) with every field, after --set; `steno plan show a.toml > b.toml` is valid."""
    plan = read_plan(file, sets)
    if as_json:
        knobs = [{"name": k.name, **k.settings()} for k in plan.knobs]
        click.echo(json.dumps({"steno": 1, "keeps": plan.keeps.value, "knob": knobs}, indent=1))
        return
    click.echo(plan.to_toml(), nl=False)
