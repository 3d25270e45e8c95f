"""SentenceKV: a pool of tokens, of which the sentences that bear on what is being said are seen.

SentenceKV: Efficient LLM Inference via Sentence-Level Semantic KV Caching. Texts mean by sentences: each is stored
under the mean of its keys. The queries of the sentence now being said, by their mean, rank the sentences; those that
rank highest are loaded, whole and in order, until `budget` tokens per head are. What enters the pool at all is chosen
as in SnapKV.

What differs from the paper: sentences are chosen anew, and the pool takes in new tokens, every `block` tokens and not
whenever a sentence ends, since a step may not outrun what a cache shows; a sentence that does not end is cut after
`longest` tokens; pool and chosen tokens stand in one memory: `pool` alone bounds the bytes, and `budget` the time
(the paper keeps the pool in the memory of the host).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from steno.core import Card, KVShape, Span, Tier

from .base import ObservationKnob

if TYPE_CHECKING:
    from steno.tokens import Tokenizer

CARD = Card(
    paper="SentenceKV: Efficient LLM Inference via Sentence-Level Semantic KV Caching",
    keeps="near",
    breaks=("cache",),
    backends=("hf",),
    requires=("hf",),
)

NIB = (199, 273, 478)
"""What `with_ends` finds for the model in the box, which reads code, with the mark "\\n"."""


@dataclass(frozen=True, kw_only=True)
class SentenceKV(ObservationKnob):
    """`pool` tokens are held per head and `budget` of them seen, the first `sinks` always; `ends` are token ids."""

    card: ClassVar[Card] = CARD
    recalls: ClassVar[bool] = True
    points: ClassVar = (
        {"ends": NIB, "pool": 512, "residual": 64},
        {"ends": NIB, "pool": 512, "budget": 64, "residual": 64},
        {"ends": NIB, "pool": 256, "budget": 64, "residual": 64},
    )

    pool: Annotated[int, Span(1, 1 << 24, "tokens per head")] = 640
    budget: Annotated[int, Span(1, 1 << 24, "tokens per head")] = 128
    ends: Annotated[tuple[int, ...], Span(0, 1 << 30)] = ()
    longest: Annotated[int, Span(1, 4096, "tokens")] = 32
    sinks: Annotated[int, Span(0, 1024, "tokens")] = 4

    def open(self, shape: KVShape) -> Tier:
        from ._ranks import Observed
        from ._recall import Passages, RecallTier

        passages = Passages(ends=frozenset(self.ends), longest=self.longest, budget=self.budget, sinks=self.sinks)
        return RecallTier(self, Observed(self.window, self.kernel), self.pool, passages, shape)


def with_ends(knob: SentenceKV, tokenizer: "Tokenizer", marks: Sequence[str] = (".", "!", "?", "\n")) -> SentenceKV:
    """The knob with the ids of all tokens that end with one of `marks`, spaces behind it not counted."""
    pieces = ((token, tokenizer.decode([token]).rstrip(" \t")) for token in range(tokenizer.vocab))
    return replace(knob, ends=tuple(token for token, piece in pieces if piece.endswith(tuple(marks))))
