"""What the loop does for a drafter that reads hidden states: hand it the session, and run its prompts in forwards."""

from collections.abc import Sequence

import numpy as np

from steno.core import PAD, ROOT, Model, Nodes, Session, Want
from steno.core.errors import CapsError

from .base import Reader


def attach(reader: Reader, session: Session, model: Model) -> None:
    """Give the session over. Raises CapsError where it cannot hand out hidden states."""
    if not session.caps.hidden:
        raise CapsError(
            f"{model.name} on the {model.backend} backend has no hidden states to draft from. "
            "Choose another --backend, or a drafter that works on tokens alone."
        )
    reader.attach(session)


def read(reader: Reader, session: Session, prompts: Sequence[Sequence[int]]) -> None:
    """Commit `prompts[b]` to row b in chains as wide as fit, handing the reader their states.

    By contract C3 this leaves the session as a prefill would; a step never crosses a point where a cache seals.
    """
    done = [0] * len(prompts)
    want = Want(logits=False, hidden=reader.hidden)
    while any(d < len(p) for d, p in zip(done, prompts, strict=True)):
        most = [min(limit, session.caps.max_width) for limit in session.room()]
        parts = [p[d : d + m] for p, d, m in zip(prompts, done, most, strict=True)]
        width = max(map(len, parts))
        tokens = np.zeros((len(parts), width), np.int32)
        parents = np.full((len(parts), width), PAD, np.int32)
        for row, part in enumerate(parts):
            tokens[row, : len(part)] = part
            parents[row, : len(part)] = np.arange(ROOT, len(part) - 1)
        step = session.forward(Nodes(tokens=tokens, parents=parents), want)
        states = {layer: step.hidden(layer) for layer in reader.hidden}
        for row, part in enumerate(parts):
            done[row] += len(part)
            if part:
                reader.read(row, part, {layer: found[row, : len(part)] for layer, found in states.items()})
        session.commit([range(len(part)) for part in parts])
