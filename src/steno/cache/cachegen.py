"""CacheGen: a few anchor tokens in 8 bits, the others as coarse differences from them, range-coded on the wire.

CacheGen: Fast Context Loading for Language Model Applications, sections 5.1 to 5.3. Neighbouring tokens are alike, so
of each `group` the first is stored finely and the others by what sets them apart from it; deep layers, which forgive
more, get fewer levels. What goes over the wire is entropy-coded on top, in chunks that stand alone; each may be sent at
another level, coarser where the line is slow (`send`, `receive`).

What differs from the paper: keys are stored before rotation, where neighbours are more alike; the frequencies adapt
while coding, from the sizes of the codes just before in the same channel, so that no table travels (the published code
sends one per chunk, layer and channel); the coder is the range coder of steno's files. In memory, codes are packed.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from steno.core import Card, KVShape, OneOf, Span, Tier

from .base import BlockKnob

if TYPE_CHECKING:
    from ._paged import PagedTier

CARD = Card(
    paper="CacheGen: Fast Context Loading for Language Model Applications",
    keeps="near",
    breaks=("cache",),
    backends=("hf",),
    requires=("hf",),
)


@dataclass(frozen=True, kw_only=True)
class CacheGen(BlockKnob):
    """Bits of the differences, from the first layer to the last, in any number of steps of depth."""

    card: ClassVar[Card] = CARD
    points: ClassVar = (
        {"residual": 32},
        {"key_bits": (3,), "value_bits": (3,), "residual": 32},
        {"key_bits": (3, 2), "value_bits": (2,), "residual": 32},
    )

    key_bits: Annotated[tuple[int, ...], OneOf(8, 4, 3, 2)] = (4, 4, 3)
    value_bits: Annotated[tuple[int, ...], OneOf(8, 4, 3, 2)] = (4, 3, 3)
    group: Annotated[int, OneOf(8, 16, 32)] = 16
    residual: Annotated[int, Span(0, 1 << 24, "tokens")] = 64
    block: Annotated[int, OneOf(32, 64, 128, 256)] = 64

    def open(self, shape: KVShape) -> Tier:
        return self.tier(shape)

    def tier(self, shape: KVShape) -> "PagedTier":
        """`open`, whose tier can be sent."""
        from ._anchors import AnchorForm
        from ._paged import PagedTier

        size = self.block, shape.head_dim
        forms = [
            AnchorForm(
                at_depth(self.key_bits, layer, shape.layers), at_depth(self.value_bits, layer, shape.layers),
                self.group, size,
            )
            for layer in range(shape.layers)
        ]  # fmt: skip
        return PagedTier(self, forms, shape, before_rotation=True)


def at_depth(steps: tuple[int, ...], layer: int, layers: int) -> int:
    """What of `steps`, of equal length over the depth, holds at a layer; 8 where there are none.

    >>> [at_depth((4, 3), layer, 5) for layer in range(5)]
    [4, 4, 4, 3, 3]
    """
    return steps[layer * len(steps) // layers] if steps else 8


def send(
    knob: CacheGen, tier: Tier, row: int, pick: Callable[[Sequence[int]], int] = lambda sizes: 0, *, model: str = ""
) -> Iterator[bytes]:
    """A row's sealed tokens as a stream. `pick` gets a chunk's bytes at each level, the finest first, and names one."""
    from ._paged import PagedTier
    from ._wire import chunks, header

    assert isinstance(tier, PagedTier)
    yield header(_told(knob, tier.shape, model))
    yield from chunks(tier, row, pick)


def receive(knob: CacheGen, shape: KVShape, stream: Iterable[bytes], *, model: str = "") -> Tier:
    """A tier of one row from a stream, cut anywhere. Raises DataError where it is damaged or another model's."""
    from ._wire import read

    tier = knob.tier(replace(shape, batch=1))
    read(stream, _told(knob, shape, model), tier, 0)
    return tier


def in_time(seconds: float, bytes_per_s: float) -> Callable[[Sequence[int]], int]:
    """Picks the finest level that arrives within `seconds`, the coarsest where none does.

    >>> in_time(2.0, 100.0)([300, 190, 90])
    1
    """

    def pick(sizes: Sequence[int]) -> int:
        return next((level for level, size in enumerate(sizes) if size <= seconds * bytes_per_s), len(sizes) - 1)

    return pick


def _told(knob: CacheGen, shape: KVShape, model: str) -> dict[str, object]:
    """What a stream must say of itself: how its tokens are coded, and whose they are."""
    coded = {name: knob.settings()[name] for name in ("key_bits", "value_bits", "group", "block")}
    rope = [] if shape.rope is None else list(shape.rope.frequencies)
    size = [shape.layers, shape.key_heads, shape.head_dim]
    return {"form": knob.name, **coded, "shape": size, "dtype": str(shape.dtype), "rope": rope, "model": model}
