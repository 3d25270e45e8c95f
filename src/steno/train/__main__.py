"""`python -m steno.train RECIPE --out DIR`: the training command from a source checkout, nothing compiled."""

import json
import sys

import click

from steno.core.errors import StenoError
from steno.train import main


@click.command()
@click.argument("recipe")
@click.option("--out", required=True, help="Folder for the corpus, tokens, checkpoints, log and model.")
@click.option("--minutes", type=click.FloatRange(0.001), help="Finish the schedule within this time.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in --out.")
@click.option("--device", help="A torch device; default: the GPU where there is one.")
@click.option("--prepare", is_flag=True, help="Stop before training: corpus, tokenizer and packed tokens only.")
@click.option("--finish", is_flag=True, help="Export and score the checkpoint in --out as it is.")
@click.option("--score/--no-score", default=True, help="Bits per byte on held-out files, at the end.")
def command(  # noqa: PLR0917
    recipe: str,
    out: str,
    minutes: float | None,
    resume: bool,
    device: str | None,
    prepare: bool,
    finish: bool,
    score: bool,
) -> None:
    """Train a model by RECIPE."""
    try:
        report = main(
            recipe,
            out=out,
            minutes=minutes,
            resume=resume,
            device=device,
            prepare_only=prepare,
            finish_only=finish,
            score=score,
        )
    except StenoError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    click.echo(json.dumps(report, indent=1))


command()
