"""What `zip` and `unzip` share: the model, and progress on a terminal."""

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from steno.core.errors import ModelError

if TYPE_CHECKING:
    from steno.codecs.neural import Neural, Passes

GOLDEN = "steno_golden.json"
"""A file of a model's folder: the golden vector of its release."""


def open_neural(source: str, threads: int) -> "tuple[Neural, int]":
    """(a model ready to code, bytes of its weights). Runs the self-test where the model's folder has a golden vector.

    Raises ModelError, CapsError, WrongModel.
    """
    from steno.codecs.identity import check_golden
    from steno.codecs.neural import Neural
    from steno.models import ModelSpec
    from steno.models.predictor import predictor
    from steno.tune.job import open_subject

    subject = open_subject(ModelSpec(source=source, threads=threads))
    if subject.tokenizer is None or subject.folder is None:
        raise ModelError(f"{source} has no tokenizer, so it cannot read bytes. Name a model folder, a hub id, or nib.")
    neural = Neural.of(predictor(subject.model, subject.tokenizer.bos), subject.tokenizer)
    file = subject.folder / GOLDEN
    if file.exists():
        known = json.loads(file.read_text(encoding="utf-8"))
        if known.get("predictor") == neural.predictor.fingerprint:
            check_golden(neural, known["golden"])
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
