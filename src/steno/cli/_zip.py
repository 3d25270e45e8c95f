"""What `zip` and `unzip` share: the model, and progress on a terminal."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from steno.core.errors import ModelError

if TYPE_CHECKING:
    from steno.codecs.neural import Neural, Passes


def open_neural(source: str, threads: int) -> "tuple[Neural, int]":
    """(a model ready to code, bytes of its weights). Refuses where the golden vector of the model's folder differs.

    Raises ModelError, CapsError, WrongModel.
    """
    from steno.codecs.neural import Neural
    from steno.models import ModelSpec
    from steno.models.native import NativeModel, self_test
    from steno.models.predictor import predictor
    from steno.tune.job import open_subject

    subject = open_subject(ModelSpec(source=source, threads=threads))
    if subject.tokenizer is None or subject.folder is None:
        raise ModelError(f"{source} has no tokenizer, so it cannot read bytes. Name a model folder, a hub id, or nib.")
    source_of_scores = predictor(subject.model, subject.tokenizer.bos)
    if isinstance(subject.model, NativeModel):
        self_test(subject.model)
    neural = Neural.of(source_of_scores, subject.tokenizer)
    return neural, subject.model.weight_bytes()


def progress(what: str) -> Callable[[int], None]:
    """Bytes done, on a terminal only."""
    shown = sys.stderr.isatty()

    def watch(done: int) -> None:
        if shown:
            click.echo(f"\r{what} {done / 1e6:,.1f} MB", nl=False, err=True)

    return watch


def end_progress() -> None:
    if sys.stderr.isatty():
        click.echo("\r\x1b[K", nl=False, err=True)


def passes_line(passes: "Passes") -> str:
    saved = passes.plain - passes.passes
    share = saved / passes.plain if passes.plain else 0.0
    return (
        f"{passes.passes:,} passes of the model where plain decoding takes {passes.plain:,}: "
        f"{saved:,} saved by drafts ({share:.1%}); {passes.right:,} of {passes.drafted:,} drafted steps were right"
    )


def passes_record(passes: "Passes") -> dict[str, int]:
    return {
        "passes": passes.passes,
        "plain_passes": passes.plain,
        "saved": passes.plain - passes.passes,
        "drafted": passes.drafted,
        "right": passes.right,
    }
