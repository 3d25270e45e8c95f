"""Training: from a recipe to a model folder that loads anywhere. `main` is what `steno train` runs."""

from pathlib import Path

__all__ = ["main"]


def main(
    recipe: str | Path,
    *,
    out: str | Path,
    minutes: float | None = None,
    resume: bool = False,
    device: str | None = None,
    prepare_only: bool = False,
    finish_only: bool = False,
    score: bool = True,
) -> dict[str, object]:
    """Corpus, tokenizer, packing, training, export and evaluation, each skipped where `out` already holds its result.

    `minutes` bounds the training itself; `device` is a torch device, the GPU by default where there is one.
    `prepare_only` stops before training; `finish_only` exports the checkpoint as it is; without `score`, nothing is
    evaluated. Returns the report that is also written to `out/report.json`. Raises RecipeError, OutputError,
    CheckpointError or Interrupted.
    """
    # Late, so that importing the room costs no torch.
    from steno.train.run import run

    return run(
        Path(recipe),
        out=Path(out),
        minutes=minutes,
        resume=resume,
        device=device,
        prepare_only=prepare_only,
        finish_only=finish_only,
        score=score,
    )
