"""`steno verify`: the conformance kit on the user's own model and plan."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ._options import json_option, model_options, plan_options

if TYPE_CHECKING:
    from steno.core import Plan
    from steno.measure import Verdict
    from steno.models import ModelSpec


@click.command("verify")
@model_options
@plan_options
@click.option("--prompts", "source", metavar="FILE", help="JSON lines or plain text, or - for stdin.")
@click.option("--max-tokens", type=click.IntRange(1), help="Tokens per text; default: as many as speed allows.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Fixes sampling.")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    *,
    spec: "ModelSpec",
    plan: "Plan",
    source: str | None,
    max_tokens: int | None,
    seed: int,
    as_json: bool,
) -> None:
    """Check that the plan keeps on MODEL what its cards promise; exit 1 where it does not."""
    from steno.measure import to_json
    from steno.measure.conform import verify
    from steno.tune.job import open_subject
    from steno.tune.prompts import DEMO, parse, prepare, read

    plan.check()
    found = None
    if source == "-":
        found = parse(sys.stdin.buffer.read(), "stdin")
    elif source is not None or spec.source == "nib":
        found = read(Path(source) if source else DEMO)
    subject = open_subject(spec)
    prompts: list[tuple[int, ...]] = []
    if found is not None:
        tasks, problems = prepare(
            found, subject.tokenizer, subject.model.vocab, subject.model.context, max_tokens=max_tokens or 1, seed=seed
        )
        for problem in problems:
            click.echo(f"left out: {problem}", err=True)
        prompts = [task.request.prompt for task in tasks]
    verdict = verify(
        subject.model,
        plan,
        seeds=(seed,),
        prompts=prompts,
        tokens=max_tokens,
        on_check=lambda check: click.echo(f"{check.name}: {check.status.value}", err=True),
    )
    if as_json:
        click.echo(to_json(verdict))
    else:
        _print(verdict)
    ctx.exit(0 if verdict.passed else 1)


def _print(verdict: "Verdict") -> None:
    from steno.measure import Status

    marks = {Status.PASS: "pass", Status.FAIL: "FAIL", Status.SKIP: "  - "}
    for check in verdict.checks:
        click.echo(f"{marks[check.status]}  {check.name}: {check.rule} ({check.cases} cases)")
        if check.detail:
            click.echo(f"      {check.detail}")
    passed = sum(check.status is Status.PASS for check in verdict.checks)
    click.echo(
        f"{'holds' if verdict.passed else 'DOES NOT HOLD'}: {passed} checks passed, {len(verdict.failed)} failed. "
        f"{verdict.model} on {verdict.backend} keeps {verdict.keeps.value}. {verdict.covered}"
    )
