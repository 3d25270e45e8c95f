"""A language model as the coders see it (`core.Predictor`): a session whose context slides by a fixed rule.

A stream's past is its last n symbols, n going by a saw-tooth: it grows to the model's context, then falls to a quarter
of it, which is read again. The rule depends on the number of symbols alone, so encoder and decoder agree.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steno.core import PAD, ROOT, Model, Nodes, Session
from steno.core.errors import CapsError, ModelError
from steno.core.session import Step

from ._content import content_id
from .native import ARITHMETIC, NativeModel

I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]

CONTEXT = 1024
"""Most symbols a past may hold: longer pasts cost more than they save on the models this is for."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SessionPredictor:
    """content  what the scores depend on; context  symbols a past grows to; keep  symbols it falls to"""

    model: Model
    content: str
    start: int
    context: int
    keep: int

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def vocab(self) -> int:
        return self.model.vocab

    @property
    def fingerprint(self) -> str:
        text = f"{self.content}\n{self.start}\n{self.context}\n{self.keep}"
        return hashlib.sha256(text.encode()).hexdigest()

    def open(self, streams: int) -> "SessionStreams":
        return SessionStreams(self, self.model.open(streams, self.context))


class SessionStreams:
    """See `core.predictor.Streams`."""

    def __init__(self, predictor: SessionPredictor, session: Session) -> None:
        self._predictor = predictor
        self._session = session
        self._past: list[list[int]] = [[] for _ in session.lengths]
        self._drafts: list[list[int]] = []

    def room(self) -> int:
        self._slide()
        width = min(self._session.room())
        return max(1, min(width, self._session.caps.max_width))

    def ahead(self, symbols: I32) -> F32:
        self._slide()
        parents = np.where(symbols >= 0, np.arange(ROOT, symbols.shape[1] - 1, dtype=np.int32), PAD).astype(np.int32)
        step: Step = self._session.forward(Nodes(tokens=np.maximum(symbols, 0), parents=parents))
        self._drafts = symbols.tolist()
        return step.logits

    def keep(self, counts: Sequence[int]) -> None:
        self._session.commit([list(range(count)) for count in counts])
        for past, drafts, count in zip(self._past, self._drafts, counts, strict=True):
            past.extend(drafts[:count])
            del past[: -self._predictor.keep]

    def _slide(self) -> None:
        lengths = self._session.lengths
        full = [n >= self._predictor.context for n in lengths]
        if any(full):
            self._session.crop([0 if f else n for f, n in zip(full, lengths, strict=True)])
            self._session.prefill([past if f else [] for f, past in zip(full, self._past, strict=True)])


def predictor(model: Model, start: int | None = None) -> SessionPredictor:
    """`model` for coding. Raises CapsError where its arithmetic is not exact on every machine."""
    if isinstance(model, NativeModel):
        content = f"{ARITHMETIC}\n{model.weights}\n{content_id(model.path)}"
    elif model.backend == "table":
        content = model.fingerprint
    else:
        raise CapsError(
            f"zip needs a model whose numbers are the same on every machine; the {model.backend} backend does not "
            "promise that. Name a model of the Llama family, or leave --model out for nib."
        )
    context = min(model.context, CONTEXT)
    if context < 8:
        raise ModelError(f"{model.name}: a context of {context} symbols is too short for zip. Use another model.")
    first = start if start is not None else min(model.eos, default=0)
    return SessionPredictor(model=model, content=content, start=first, context=context, keep=max(1, context // 4))
