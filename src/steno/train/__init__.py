"""Training: from a recipe to a model folder that loads anywhere. `main` is what `steno train` runs."""

from pathlib import Path

from steno.train.base import RecipeError

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

    A recipe of a drafter's trained part, a file or the name of a shipped one ("medusa"), is trained on its model
    instead, which stays as it is; such a run takes minutes and cannot be resumed.

    `minutes` bounds the training itself; `device` is a torch device, the GPU by default where there is one.
    `prepare_only` stops before training; `finish_only` exports the checkpoint as it is; without `score`, nothing is
    evaluated. Returns the report that is also written to `out/report.json`. Raises RecipeError, OutputError,
    CheckpointError or Interrupted.
    """
    from steno.train.heads import recipe as parts

    part = parts.find(recipe)
    if part is not None:
        if resume or prepare_only or finish_only or device not in (None, "cpu") or not score:
            raise RecipeError(f"Recipe {recipe}: a drafter's part is trained in one go on the CPU; leave options out.")
        from steno.train.heads.run import run as run_part

        return run_part(part, out=Path(out), minutes=minutes)
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
