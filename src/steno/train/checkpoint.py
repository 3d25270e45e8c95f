"""Checkpoints: one file, written whole or not at all, checked when read.

The file is a magic line, the SHA-256 of the rest, then what `torch.save` wrote. It goes to a temporary name in the same
folder, is flushed to disk, and only then takes the place of the one before: a full disk or a power cut leaves the
previous checkpoint as it was.
"""

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from steno.core.errors import OutputError
from steno.train.base import CheckpointError

MAGIC = b"steno-train-1\n"
NAME = "checkpoint.pt"


@dataclass(kw_only=True)
class State:
    """Everything training needs to go on as if it had never stopped."""

    step: int
    elapsed_s: float
    tokens: int
    recipe: str
    model: dict[str, torch.Tensor]
    optimizers: list[dict[str, object]]
    rng: list[torch.Tensor]


def save(folder: Path, state: State) -> None:
    """Replace the folder's checkpoint. Raises OutputError where it cannot be written; the old one then stands."""
    body = io.BytesIO()
    torch.save(vars(state), body)
    view = body.getbuffer()
    path, temporary = folder / NAME, folder / (NAME + ".part")
    try:
        with open(temporary, "wb") as file:
            file.write(MAGIC + hashlib.sha256(view).digest())
            file.write(view)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        kept = "the previous checkpoint is intact" if path.is_file() else "there is no earlier one"
        raise OutputError(
            f"Checkpoint {path}: cannot be written ({error.strerror}); {kept}. "
            f"Free {len(view) / 1e6:.0f} MB there, then resume."
        ) from None


def load(folder: Path, recipe: str) -> State:
    """Read a folder's checkpoint. Raises CheckpointError where it is missing, damaged or of another recipe."""
    path = folder / NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"Checkpoint {path}: there is none to resume. Start without --resume.") from None
    head = len(MAGIC) + 32
    if not data.startswith(MAGIC) or hashlib.sha256(memoryview(data)[head:]).digest() != data[len(MAGIC) : head]:
        raise CheckpointError(
            f"Checkpoint {path}: damaged (its checksum does not match). "
            "Restore a copy of it, or delete it and start again."
        )
    state = State(**torch.load(io.BytesIO(memoryview(data)[head:]), map_location="cpu", weights_only=True))
    if state.recipe != recipe:
        raise CheckpointError(
            f"Checkpoint {path}: it was written by another recipe. Resume with the recipe it was started with, "
            "or choose another --out."
        )
    return state


def rng_state() -> list[torch.Tensor]:
    """The states of torch's generators on this machine."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def set_rng_state(states: list[torch.Tensor]) -> None:
    """Put `rng_state` back; a machine with other devices keeps only the first."""
    torch.set_rng_state(states[0])
    if torch.cuda.is_available() and len(states) == 1 + torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states[1:])
