"""`steno tune`: the fastest plan for a model on the user's own prompts, with proof."""

import json
import shlex
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import click

from ._options import force_option, json_option, model_options, plan_options

if TYPE_CHECKING:
    from steno.core import Plan
    from steno.measure import Run, Trial
    from steno.models import ModelSpec
    from steno.tune.prompts import Prompts
    from steno.tune.search import Progress


@click.command("tune")
@model_options
@plan_options
@click.option("--prompts", "source", metavar="FILE", help="JSON lines or plain text, or - for stdin. nib has its own.")
@click.option("--keep", type=click.Choice(["tokens", "law", "near"]), default="tokens", help="The least to keep.")
@click.option("--max-kl", type=click.FloatRange(0, min_open=True), help="Most KL to plain, in nats per token (near).")
@click.option("--max-bytes", type=click.IntRange(1), help="Most bytes of weights and cache together.")
@click.option("--max-tokens", type=click.IntRange(1), default=128, help="Tokens per prompt, where it names none.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=10.0, help="Time for the search.")
@click.option("--batch", type=click.IntRange(1, 1024), default=1, help="Prompts that run together.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Fixes order and sampling.")
@click.option("--out", metavar="DIR", help="Where plan.toml, report.html and run.json go; default tuned-MODEL.")
@click.option("--resume", is_flag=True, help="Go on with the search in --out.")
@force_option
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    *,
    spec: "ModelSpec",
    plan: "Plan",
    source: str | None,
    keep: str,
    max_kl: float | None,
    max_bytes: int | None,
    max_tokens: int,
    minutes: float,
    batch: int,
    seed: int,
    out: str | None,
    resume: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Search for the fastest plan for MODEL that keeps what --keep says.

    Knobs of --plan and --set are in every candidate; those that say what is asked for, such as a temperature, are in
    the plain baseline too.
    """
    from steno.core import Keeps
    from steno.core.errors import UserError
    from steno.tune.job import Order, check_out, tune
    from steno.tune.search import Goal

    if max_kl is not None and keep != "near":
        raise UserError(f"--max-kl limits approximate plans, and --keep {keep} allows none. Add --keep near.")
    folder = Path(out or "tuned-" + Path(spec.source).name.replace(":", "-"))
    # Before anything is read: a taken folder is known at once.
    check_out(folder, resume=resume, force=force)
    prompts, named = _prompts(source, spec)
    goal = Goal(keep=Keeps(keep), seconds=60 * minutes, max_kl=max_kl, max_bytes=max_bytes, seed=seed)
    order = Order(
        spec=spec,
        prompts=prompts,
        source=named,
        goal=goal,
        out=folder,
        base=plan,
        max_tokens=max_tokens,
        batch=batch,
        resume=resume,
        force=force,
    )
    try:
        with _Watch(goal.seconds) as watch:
            run = tune(order, watch=watch, say=watch.say)
    except KeyboardInterrupt:
        if (folder / "journal.jsonl").exists():
            click.echo(f"stopped; nothing measured is lost. Go on with: {_again(ctx)}", err=True)
        raise
    if as_json:
        click.echo(json.dumps(_summary(run, folder), indent=1, ensure_ascii=False))
    else:
        _table(run)
    click.echo(f"wrote {folder / 'plan.toml'}, {folder / 'report.html'} and {folder / 'run.json'}", err=True)


def _prompts(source: str | None, spec: "ModelSpec") -> "tuple[Prompts, str]":
    from steno.core.errors import PromptError
    from steno.tune.prompts import DEMO, parse, read

    if source == "-":
        return parse(sys.stdin.buffer.read(), "stdin"), "stdin"
    if source is not None:
        return read(Path(source)), source
    if spec.source != "nib":
        raise PromptError("tuning needs your prompts: name a file with --prompts, or - for stdin.")
    return read(DEMO), "the bundled prompts"


def _again(ctx: click.Context) -> str:
    words = ctx.obj if isinstance(ctx.obj, list) else sys.argv[1:]
    kept = [word for word in words if word not in ("--force", "--resume")]
    return shlex.join(["steno", *kept, "--resume"])


class _Watch:
    """Live progress on stderr: a bar on a terminal, a line per stage elsewhere."""

    def __init__(self, seconds: float) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.console = Console(stderr=True, highlight=False)
        self.seconds = seconds
        self.stage = ""
        self.bar = Progress(
            TextColumn("[bold]{task.fields[stage]:<9}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[left]} left  {task.fields[trials]} plans  {task.fields[leader]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("", total=seconds, stage="loading", left="", trials=0, leader="")

    def __enter__(self) -> "_Watch":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def __call__(self, progress: "Progress") -> None:
        from rich.markup import escape

        left = f"{int(progress.left_s) // 60}:{int(progress.left_s) % 60:02d}"
        leader = f"best so far {progress.ratio:.2f}x  {progress.leader}" if progress.leader else ""
        self.bar.update(
            self.task,
            completed=self.seconds - progress.left_s,
            stage=progress.stage,
            left=left,
            trials=progress.trials,
            leader=escape(leader),
        )
        if not self.console.is_terminal and progress.stage != self.stage:
            self.say(
                f"{progress.stage}: {progress.alive} of {progress.trials} plans in the race, {left} left. {leader}"
            )
        self.stage = progress.stage

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)


def _table(run: "Run") -> None:
    from rich.console import Console
    from rich.table import Table

    from steno.measure.report import headline

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("", overflow="fold")
    peer = run.peers[0] if run.peers else None
    heads = ["tokens/s", "over plain", *([f"over {peer.name}"] if peer else []), "identical", "KL", "bytes"]
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    slow = peer.speed.tokens_per_s if peer else 0.0
    table.add_row("plain decoding", *_cells(run.baseline, slow))
    for number, trial in _shown(run):
        style = "bold" if number == run.best else None
        table.add_row(("tuned: " if number == run.best else "") + trial.label, *_cells(trial, slow), style=style)
    if peer:
        same = f"{peer.identical}/{peer.compared}"
        rate = f"{peer.speed.tokens_per_s:,.1f}"
        table.add_row(f"{peer.name} {peer.version} generate", rate, f"{peer.speed.ratio:.2f}x", "1x", same, "-", "-")
    console.print(table)
    console.print()
    console.print(headline(run), markup=False, soft_wrap=True)
    for note in run.notes:
        console.print(note, markup=False, soft_wrap=True)


def _shown(run: "Run") -> "list[tuple[int, Trial]]":
    """The chosen plan and the other finalists, fastest first."""
    from steno.measure import Outcome

    alive = [(i, t) for i, t in enumerate(run.trials) if t.outcome in (Outcome.BEST, Outcome.KEPT) and t.speed]
    return sorted(alive, key=lambda item: -item[1].speed.ratio if item[1].speed else 0.0)


def _cells(trial: "Trial", slow: float) -> list[str]:
    from steno.measure._report_charts import size

    speed = trial.speed
    over = [f"{speed.tokens_per_s / slow:.2f}x" if speed else "-"] if slow else []
    return [
        f"{speed.tokens_per_s:,.1f}" if speed else "-",
        f"{speed.ratio:.2f}x" if speed else "-",
        *over,
        f"{trial.identical}/{trial.compared}" if trial.compared else "-",
        f"{trial.fidelity.kl_mean:.2g}" if trial.fidelity else "-",
        size(trial.bytes.total) if trial.bytes else "-",
    ]


def _summary(run: "Run", folder: Path) -> dict[str, object]:
    """What the table says, for machines; run.json has the rest."""
    best = None if run.best is None else run.trials[run.best]
    return {
        "model": run.model,
        "backend": run.backend,
        "keep": run.keep.value,
        "best": _record(best) if best else None,
        "baseline": _record(run.baseline),
        "peers": [
            {
                "name": p.name,
                "version": p.version,
                "tokens_per_s": p.speed.tokens_per_s,
                "ratio": p.speed.ratio,
                "identical": p.identical,
                "compared": p.compared,
            }
            for p in run.peers
        ],
        "trials": len(run.trials),
        "notes": list(run.notes),
        "plan": (best or run.baseline).plan,
        "files": {name: str(folder / name) for name in ("plan.toml", "report.html", "run.json")},
    }


def _record(trial: "Trial") -> dict[str, object]:
    speed = trial.speed
    return {
        "label": trial.label,
        "keeps": trial.keeps.value,
        "tokens_per_s": speed.tokens_per_s if speed else None,
        "ratio": speed.ratio if speed else None,
        "ratio_low": speed.ratio_low if speed else None,
        "ratio_high": speed.ratio_high if speed else None,
        "identical": trial.identical,
        "compared": trial.compared,
        "kl": trial.fidelity.kl_mean if trial.fidelity else None,
        "bytes": trial.bytes.total if trial.bytes else None,
    }
