"""The Tier protocol: what becomes of the KV of committed tokens once they leave a session's open buffer.

A session keeps its newest tokens, and the drafts under verification, dense in an *open buffer*. A cache form (a knob of
the `cache` room) says which committed tokens are *due* to leave it, and opens a `Tier` that takes them. Attention over
the whole past is the log-sum-exp merge of the tier's `attend` and the open buffer's.

Everything a tier holds is a function of the committed tokens alone: `due` depends on the length only, a sealed token is
never encoded again, and a session never lets one step cross a point where `due` changes (`Session.room`). That is
schedule invariance, and it is why speculation composes with compression (specs: cache, section 4.4).

Shapes: B batch, W nodes, T tokens, H query heads, G key heads, D head width. Keys are stored as the model rotated them
unless the form says otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """How a model turns its keys: channel pair i of the token at position p by the angle p * frequencies[i].

    A pair is (i, i + R / 2) of the first R = 2 * len(frequencies) channels, or (2i, 2i + 1) where `interleaved`; other
    channels are not turned. A scale that the model lays over keys stays in them (YaRN), so turning back and forth needs
    none.
    """

    frequencies: tuple[float, ...]
    interleaved: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class KVShape:
    """Shape and place of a session's KV; `rope` is None where keys are not turned, or it is not known how."""

    batch: int
    layers: int
    query_heads: int
    key_heads: int
    head_dim: int
    capacity: int
    dtype: "torch.dtype"
    device: "torch.device"
    rope: Rope | None = None


class Tier(Protocol):
    """Sealed tokens of every layer for B rows."""

    @property
    def sealed(self) -> tuple[int, ...]:
        """Tokens per row handed over so far: always the prefix [0, sealed)."""
        ...

    def seal(self, row: int, layer: int, k: "Tensor", v: "Tensor") -> None:
        """Take k, v [G, T, D], the tokens [sealed, sealed + T) of `row`; every layer gets the same T in turn.

        `sealed` grows when the last layer has been given. A session calls this at every length at which `due` grows,
        and at no other.
        """
        ...

    def attend(self, layer: int, q: "Tensor", positions: "Tensor", scale: float) -> "tuple[Tensor, Tensor]":
        """Attention of q [B, H, W, D] at positions [B, W] over the sealed tokens, in float32.

        Returns (out [B, H, W, D], lse [B, H, W]); where nothing is visible out is 0 and lse is -inf.
        """
        ...

    def materialise(self, layer: int) -> "tuple[Tensor, Tensor, Tensor]":
        """(k, v, positions): dense [B, G, S, D] twice and [B, S], -1 where a slot is empty. For checks.

        A tier whose heads keep different tokens gives positions [B, G, S].
        """
        ...

    def crop(self, row: int, length: int) -> None:
        """Take a row back to `length` tokens; 0 empties it. Raises CapsError between 0 and what has been sealed."""
        ...

    def fork(self, rows: Sequence[int]) -> "Tier":
        """A tier whose row i is row `rows[i]`; sealed blocks are shared, never copied."""
        ...

    def storages(self) -> "dict[str, list[Tensor]]":
        """Live tensors by part (payload, scales, positions, ...), from which bytes are read."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A cache form in numbers, for a backend that keeps KV itself.

    residual, block       `due(n)` is max(0, n - residual) // block * block
    key_bits, value_bits  what sealed tokens are kept in: 16 for float16; 8, 4, 3, 2 for affine codes with a float16
                          scale and zero per group; 0 where they are dropped, save the first `sinks`
    group                 tokens of a key channel that share a scale
    value_group           channels of a token's values that share a scale
    sinks, window         a query sees the first `sinks` tokens and the newest `window`; window 0: all
    """

    residual: int
    block: int
    key_bits: int = 0
    value_bits: int = 0
    group: int = 1
    value_group: int = 1
    sinks: int = 0
    window: int = 0

    def due(self, length: int) -> int:
        return max(0, length - self.residual) // self.block * self.block


@runtime_checkable
class Observer(Tier, Protocol):
    """A tier that chooses among tokens by the attention they get."""

    def observe(self, row: int, layer: int, q: "Tensor", k: "Tensor") -> None:
        """See q [H, N, D], the softmax scale in them, and k [G, N, D] of the N open tokens of `row`.

        Called right before each `seal`, which takes the oldest of these tokens; so N and all that is seen are functions
        of the committed tokens.
        """
        ...


@runtime_checkable
class Reader(Tier, Protocol):
    """A tier that goes by what the tokens are."""

    def read(self, row: int, ids: "Tensor") -> None:
        """See the ids [N] of the open tokens of `row`, right before their layers are sealed.

        0 stands where only an embedding is known.
        """
        ...


class CacheSpec(Protocol):
    """A cache form: a knob of the `cache` room."""

    def due(self, length: int) -> int:
        """How many of a row's first `length` committed tokens must have left the open buffer. Never decreases."""
        ...

    def sees(self, query: "Tensor", key: "Tensor") -> "Tensor | None":
        """Positions a query may see beyond causality: query [..., W, 1] against key [..., 1, S], bool; None: all."""
        ...

    def open(self, shape: KVShape) -> Tier:
        """An empty tier."""
        ...

    def layout(self, head_dim: int) -> Layout | None:
        """The form in numbers where it is one of that kind; None: only its tier knows what it does."""
        ...


def room(spec: CacheSpec, length: int, most: int) -> int:
    """Tokens, at least 1 and at most `most`, that one step may commit at `length` and still see one form of the cache.

    The node at position p is, token by token, computed with due(p) tokens sealed; so a step from `length` may hold the
    positions p with due(p) == due(length).
    """
    now = spec.due(length)
    count = 1
    while count < most and spec.due(length + count) == now:
        count += 1
    return count
