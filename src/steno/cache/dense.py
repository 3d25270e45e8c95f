"""The whole past in the model's own number form: the baseline of every other form.

No token is ever due, so a session keeps all of them in its open buffer and its logits are those of a session without a
form. The tier it opens stores whatever it is handed unchanged.
"""

from dataclasses import dataclass
from typing import ClassVar

from steno.core import Card, KVShape, Tier

from .base import CacheKnob

CARD = Card(paper="", keeps="bits", breaks=("cache",), backends=("hf", "native"))


@dataclass(frozen=True, kw_only=True)
class Dense(CacheKnob):
    """Nothing is compressed."""

    card: ClassVar[Card] = CARD

    def due(self, length: int) -> int:
        return 0

    def open(self, shape: KVShape) -> Tier:
        from ._dense import DenseForm
        from ._paged import PagedTier

        return PagedTier(self, DenseForm(), shape)
