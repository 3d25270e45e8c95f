"""A fixed text through a model, as a hash: does this model give, on this machine, the bits that were recorded?

Whoever stores what only the same bits can read (a compressed file) stores `golden_vector(model)` beside it and calls
`check_golden` before reading. A model folder may hold vectors of its own in `steno_golden.json`:
arithmetic -> weights form -> hash.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from steno.core import Model, Nodes
from steno.core.errors import ModelError

FILE = "steno_golden.json"
PROMPT = 25
WIDTHS = (1, 2, 3, 5, 8, 20)
"""Ids that are prefilled, and widths of the forwards after them: one id, a few and many take different kernels."""


def golden_ids(count: int, vocab: int) -> list[int]:
    """The fixed text: `count` ids below `vocab`."""
    return [(7919 * i * i + 104729 * i + 3) % vocab for i in range(count)]


def golden_vector(model: Model) -> str:
    """SHA-256 (hex) of the logits after each of 40 fixed ids, as little-endian float32.

    Models of equal fingerprint have equal vectors wherever the arithmetic is exact. Milliseconds on the native backend.
    """
    count = min(PROMPT + sum(WIDTHS), model.context)
    ids = golden_ids(count, model.vocab)
    session = model.open(1, count)
    digest = hashlib.sha256(f"steno golden 1 {count} {model.vocab}\n".encode())
    at = min(PROMPT, count - 1)
    last = session.prefill([ids[:at]], last=True) if at else None
    if last is not None:
        digest.update(np.ascontiguousarray(last, "<f4").tobytes())
    for most in (*WIDTHS, *[1] * count):
        width = min(most, session.caps.max_width, count - at)
        if not width:
            break
        tokens, parents = np.array([ids[at : at + width]], np.int32), np.arange(-1, width - 1, dtype=np.int32)
        step = session.forward(Nodes(tokens=tokens, parents=parents[None]))
        digest.update(np.ascontiguousarray(step.logits[0], "<f4").tobytes())
        session.commit([range(width)])
        at += width
    return digest.hexdigest()


def check_golden(model: Model, expected: str) -> None:
    """Raise ModelError unless the model's golden vector is `expected`."""
    found = golden_vector(model)
    if found == expected:
        return
    isa = getattr(model, "isa", "")
    raise ModelError(
        f"{model.name}: its golden vector is {found[:16]} here ({model.backend}{f', {isa}' if isa else ''}), and "
        f"{expected[:16]} was recorded: this is another model or weights form, a damaged one, or a computer with "
        f"other arithmetic. Load the model and weights form that were recorded; if they are, fetch the model again"
        + (", then set STENO_ISA=scalar and report this." if isa else ".")
    )


def recorded(folder: Path, arithmetic: str, weights: str) -> str | None:
    """The vector that a model folder holds for itself, or None. Raises ModelError where its file is damaged."""
    file = folder / FILE
    if not file.exists():
        return None
    try:
        value = json.loads(file.read_text(encoding="utf-8")).get(arithmetic, {}).get(weights)
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{file} cannot be read: {error}. Fetch the model again.") from None
    return None if value is None else str(value)
