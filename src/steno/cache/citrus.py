"""CItruS: each head keeps the tokens that the instruction looks at, however long ago it was given.

CItruS: Chunked Instruction-aware State Eviction for Long Sequence Modeling, section 3. A text is read chunk by chunk;
what a chunk's own last tokens look at says what reads on smoothly, and not what the task will need. So the
instruction's queries are put to all that is held, and its attention, by the mean of its tokens and of the heads that
share a key head, tells what stays (the paper's single cache).

What differs from the paper: a cache cannot tell where an instruction ends, so it is the first `instruction` tokens of
the text, which always stay; its queries are those it had when it was read, turned to where the text now stands, rather
than computed anew over the cache; tokens keep the positions they had in the text; and one cache serves both reading
and answering (the paper's second variant keeps two).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from steno.core import Card, KVShape, Span, Tier
from steno.core.errors import KnobError

from .base import BlockKnob

if TYPE_CHECKING:
    from torch import Tensor

    from ._scene import Scene

CARD = Card(
    paper="CItruS: Chunked Instruction-aware State Eviction for Long Sequence Modeling",
    keeps="near",
    breaks=("cache",),
    backends=("hf",),
    requires=("hf",),
)


@dataclass(frozen=True, kw_only=True)
class Citrus(BlockKnob):
    """`budget` tokens per head, the first `instruction` tokens among them; `block` is the paper's chunk."""

    card: ClassVar[Card] = CARD
    points: ClassVar = (
        {"residual": 64},
        {"budget": 128, "residual": 64},
        {"budget": 128, "instruction": 8, "residual": 64},
    )

    budget: Annotated[int, Span(1, 1 << 24, "tokens per head")] = 256
    instruction: Annotated[int, Span(1, 4096, "tokens")] = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        most = min(self.budget, self.residual + self.block)
        if self.instruction > most:
            raise KnobError(
                f"{self.name}: instruction must be at most budget ({self.budget}) and residual + block "
                f"({self.residual + self.block}), got {self.instruction}. "
                f"Set it with --set {self.name}.instruction={most}"
            )

    def open(self, shape: KVShape) -> Tier:
        from ._dense import DenseForm
        from ._instruct import InstructedTier
        from ._kept import Shelf

        shelf = Shelf(DenseForm(), self.budget)
        return InstructedTier(self, _Asked(self.instruction), shelf, self.instruction, shape)


@dataclass(frozen=True, slots=True)
class _Asked:
    """The attention of the instruction to all that is held."""

    instruction: int
    remembers: bool = False

    def rank(self, scene: "Scene") -> "Tensor":
        import torch

        assert scene.asks is not None
        got = (scene.asks @ scene.keys[:, None].mT).softmax(-1).mean((1, 2))
        return torch.where(scene.positions < self.instruction, torch.inf, got)
