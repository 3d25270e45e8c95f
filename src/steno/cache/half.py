"""Half precision: sealed tokens in float16, each key and value rounded to the nearest.

What engines that compute in float16 keep anyway; beside float32 it halves the bytes for a relative error of at most
2^-11. Tokens leave the open buffer `block` at a time, so that what is stored depends on the committed tokens alone.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from steno.core import Card, KVShape, Layout, Span, Tier
from steno.core.errors import ModelError

from .base import BlockKnob

if TYPE_CHECKING:
    from torch import Tensor

CARD = Card(paper="", keeps="near", breaks=("cache",), backends=("hf", "native"))


@dataclass(frozen=True, kw_only=True)
class Half(BlockKnob):
    """Changes nothing of a model that runs in float16 itself."""

    card: ClassVar[Card] = CARD

    residual: Annotated[int, Span(0, 1 << 24, "tokens")] = 0
    block: Annotated[int, Span(1, 4096, "tokens")] = 64

    def open(self, shape: KVShape) -> Tier:
        from ._paged import PagedTier

        return PagedTier(self, _HalfForm(), shape)

    def layout(self, head_dim: int) -> Layout:
        return Layout(residual=self.residual, block=self.block, key_bits=16, value_bits=16)


@dataclass(frozen=True, slots=True)
class _HalfForm:
    """One part: keys and values [G, T, 2, D]."""

    unit: int = 1

    def keeps(self, sealed: int) -> int:
        return sealed

    def encode(self, k: "Tensor", v: "Tensor") -> "dict[str, Tensor]":
        import torch

        payload = torch.stack([k, v], 2).half()
        if not bool(payload.isfinite().all()):
            raise ModelError(
                "cache.half: the model's keys or values are not finite, or beyond float16 (65504). "
                "Use cache.dense with this model."
            )
        return {"payload": payload}

    def decode(self, parts: "dict[str, Tensor]") -> "tuple[Tensor, Tensor]":
        k, v = parts["payload"].float().unbind(2)
        return k, v
