"""Repetition-aware sampling: draw from the nucleus, but from the whole law where the draw has come too often lately.

Section 3.3 of VALL-E 2: x ~ nucleus; where x makes up `ratio` or more of the last `window` tokens, x is drawn again
from p itself. Both draws together are one law,

    P(x) = q(x) [x is not too frequent] + p(x) sum of q(y) over the y that are,

with q the nucleus of p. So it is a shaper like any other: it composes with every acceptor, and drafts change nothing.

What differs from the paper: text tokens in place of codec codes; the second draw needs no second random number.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from steno.core import Card, Span

from .._law import softmax
from ..base import Floats, ShaperKnob
from ._nucleus import nucleus

CARD = Card(
    paper="VALL-E 2: Neural Codec Language Models are Human Parity Zero-Shot Text to Speech Synthesizers",
    task=True,
)


@dataclass(frozen=True, kw_only=True)
class RepetitionAware(ShaperKnob):
    """Put it last, behind the temperature: it hands out a law's logarithms."""

    card: ClassVar[Card] = CARD

    p: Annotated[float, Span(0.0, 1.0)] = 0.8
    k: Annotated[int, Span(1, 1 << 20, "tokens")] = 25
    window: Annotated[int, Span(1, 4096, "tokens")] = 10
    ratio: Annotated[float, Span(0.0, 1.0)] = 0.1

    def shape(self, logits: Floats, past: Sequence[int]) -> Floats:
        law = softmax(logits)
        inner = nucleus(logits, law, self.p)[: self.k]
        mixed = np.zeros_like(law)
        mixed[inner] = law[inner] / law[inner].sum()
        counts = Counter(past[-self.window :])
        frequent = [token for token in inner.tolist() if counts[token] / self.window >= self.ratio]
        again = mixed[frequent].sum()
        mixed[frequent] = 0.0
        if again:
            mixed += again * law
        with np.errstate(divide="ignore"):
            return np.log(mixed).astype(np.float32)
