"""The room's protocol: a weights knob turns one model folder into a smaller one.

A method says what to store instead of which weights (`recode`); everything else is done here once: the source is
checked, tensors stream one by one into a folder that appears whole or not at all, configuration and tokenizer are
copied, and the plan that made the folder and a ledger of its bytes are written beside the weights.

Shape legend of the room: N rows (output channels), K columns (inputs), R rank, G groups of a row.
"""

import shutil
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from steno.core import Knob, Plan
from steno.core.errors import OutputError
from steno.models.checkpoint import Checkpoint

from ._ledger import NAME, Ledger
from ._output import new_folder
from ._recoding import Recoding
from ._write import PLAN, Progress, write

Calibration = Sequence[Sequence[int]]
"""Token ids of calibration texts."""


@dataclass(frozen=True, kw_only=True)
class WeightsKnob(Knob):
    """Base of the weights knobs."""

    def apply(
        self,
        source: Path,
        out: Path,
        *,
        calibration: Calibration | None = None,
        force: bool = False,
        progress: Progress | None = None,
    ) -> Ledger:
        """Write the model folder `source`, compressed, as the new folder `out`.

        calibration  token ids of texts like those the model will see, for methods that look at activations
        force        replace `out` where it exists

        Raises ModelError for a missing or damaged source, OutputError where `out` exists or cannot be written,
        PromptError for calibration that is missing where it is needed, or does not fit the model.
        """
        say = progress or _silent
        source, out = Path(source), Path(out)
        if out.resolve() == source.resolve() or source.resolve() in out.resolve().parents:
            raise OutputError(f"{out} lies in the source folder, which is never changed. Name another folder.")
        model = Checkpoint(source)
        model.quantization  # noqa: B018  (raises for schemes that cannot be read)
        with new_folder(out, force) as folder:
            scratch = folder / ".scratch"
            recoding = self.recode(model, scratch, calibration, say)
            ledger = write(self.name, model, recoding, folder, say)
            shutil.rmtree(scratch, ignore_errors=True)
            (folder / PLAN).write_text(Plan((self,)).to_toml(), encoding="utf-8")
            others = sum(p.stat().st_size for p in folder.iterdir() if p.suffix != ".safetensors")
            ledger = replace(ledger, other_bytes=others)
            (folder / NAME).write_text(ledger.to_json(), encoding="utf-8")
        return ledger

    @abstractmethod
    def recode(
        self, source: Checkpoint, scratch: Path, calibration: Calibration | None, progress: Progress
    ) -> Recoding:
        """What to store instead of which weights. `scratch` may be made and filled; it does not stay."""
        ...


def _silent(what: str, done: int, total: int) -> None:
    pass
