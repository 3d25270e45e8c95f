"""`steno train`: a model by a recipe, resumable, with its log and its curve."""

import json

import click

from ._options import json_option


@click.command("train")
@click.argument("recipe")
@click.option("--out", required=True, metavar="DIR", help="Folder for corpus, tokens, checkpoints, log and model.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Finish the schedule within this time.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in --out.")
@click.option("--device", metavar="NAME", help="A torch device; default: the accelerator where there is one.")
@click.option("--prepare", is_flag=True, help="Stop before training: corpus, tokenizer and packed tokens only.")
@click.option("--finish", is_flag=True, help="Export and score the checkpoint in --out as it is.")
@click.option("--score/--no-score", default=True, help="Bits per byte on held-out files, at the end.")
@json_option
def command(
    *,
    recipe: str,
    out: str,
    minutes: float | None,
    resume: bool,
    device: str | None,
    prepare: bool,
    finish: bool,
    score: bool,
    as_json: bool,
) -> None:
    """Train a model by RECIPE, a TOML file."""
    from steno.core.errors import MissingExtra

    try:
        from steno.train import main

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
    except ModuleNotFoundError as error:
        if error.name and not error.name.startswith("steno"):
            raise MissingExtra("training", error.name, "train") from None
        raise
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        for key, value in report.items():
            click.echo(f"{key}: {json.dumps(value)}")
