"""A tier whose rows keep a prefix of their sealed tokens in immutable pages.

A page's tensors are never written after they are made: a seal replaces the last page by itself joined with the new
tokens, or starts another. So forks share pages by reference, and no copy-on-write is needed. Which tokens share a page
depends on positions alone, hence so does every bit of `attend`. Reading one page at a time bounds the scratch.

Layers may have forms of their own. Keys may be stored as they were before rotation, and the first few tokens, which
attention leans on, as they came: both are the tier's doing, and no form knows of it.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Protocol, TypedDict

import torch
from torch import Tensor

from steno.core import CacheSpec, KVShape, Tier
from steno.core.errors import CapsError, DataError

from ._lse import Part, attend, merge
from ._turn import turn

Parts = dict[str, Tensor]

SCRATCH_BYTES = 4 << 20
"""Most bytes of float32 keys and values that one page of one row and layer unfolds into."""


class Form(Protocol):
    """How tokens of one row and layer are stored. Every part has its token units (tokens, or blocks) on axis 1."""

    @property
    def unit(self) -> int:
        """Tokens are encoded in multiples of this."""
        ...

    def keeps(self, sealed: int) -> int:
        """How many of the first `sealed` tokens stay readable: always the prefix."""
        ...

    def encode(self, k: Tensor, v: Tensor) -> Parts:
        """Parts of k, v [G, T, D]; shares no storage with them."""
        ...

    def decode(self, parts: Parts) -> tuple[Tensor, Tensor]:
        """k, v [G, T, D] in float32."""
        ...


@dataclass(frozen=True, slots=True)
class Page:
    """`sinks` [G, s, 2, D]: keys and values of the first tokens of a row, as they came."""

    tokens: int
    parts: Parts
    sinks: Tensor | None = None

    def join(self, other: "Page") -> "Page":
        parts = {name: torch.cat([part, other.parts[name]], 1) for name, part in self.parts.items()}
        return Page(self.tokens + other.tokens, parts, self.sinks)

    def all(self) -> Parts:
        return self.parts if self.sinks is None else {**self.parts, "sinks": self.sinks}


Pages = tuple[Page, ...]


class Meta(TypedDict):
    """Sealed tokens by row, kept tokens by page, and the numbers of the pages by row and layer: plain data."""

    sealed: list[int]
    tokens: list[int]
    rows: list[list[list[int]]]


class PagedTier:
    """A `core.Tier` over a `Form`, or over one for each layer, all of the same unit; `spec` says what a query sees.

    `before_rotation`: keys are stored turned back, where the shape says how the model turns them. `sinks`: the first so
    many tokens, fewer than the form's unit, are stored as they came.
    """

    def __init__(
        self,
        spec: CacheSpec,
        form: Form | Sequence[Form],
        shape: KVShape,
        *,
        before_rotation: bool = False,
        sinks: int = 0,
    ) -> None:
        self.spec, self.form, self.shape, self.sinks = spec, form, shape, sinks
        self.forms = list(form) if isinstance(form, Sequence) else [form] * shape.layers
        self.rope = shape.rope if before_rotation else None
        whole = SCRATCH_BYTES // (2 * 4 * shape.key_heads * shape.head_dim)
        unit = self.forms[0].unit
        self.page_tokens = max(unit, whole // unit * unit)
        self._sealed = [0] * shape.batch
        self._pages: list[list[Pages]] = [[()] * shape.layers for _ in range(shape.batch)]

    @property
    def sealed(self) -> tuple[int, ...]:
        return tuple(self._sealed)

    def seal(self, row: int, layer: int, k: Tensor, v: Tensor) -> None:
        start = self._sealed[row]
        end = start + k.shape[1]
        form = self.forms[layer]
        kept = form.keeps(end) - form.keeps(start)
        self._pages[row][layer] = self._extend(layer, self._pages[row][layer], k[:, :kept], v[:, :kept])
        if layer == self.shape.layers - 1:
            self._sealed[row] = end

    def attend(self, layer: int, q: Tensor, positions: Tensor, scale: float) -> Part:
        out = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
        lse = torch.full(q.shape[:-1], -torch.inf, dtype=torch.float32, device=q.device)
        heads, width, dim = q.shape[1:]
        for row in range(q.shape[0]):
            pages = self._pages[row][layer]
            if pages:
                grouped = q[row].float().mul(scale).reshape(self.shape.key_heads, -1, dim)
                part = self._attend_row(layer, pages, grouped, positions[row])
                out[row] = part[0].view(heads, width, dim)
                lse[row] = part[1].view(heads, width)
        return out, lse

    def materialise(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        rows = [self._pages[row][layer] for row in range(self.shape.batch)]
        most = max((sum(page.tokens for page in pages) for pages in rows), default=0)
        shape = (self.shape.batch, self.shape.key_heads, most, self.shape.head_dim)
        k, v = torch.zeros(2, *shape, dtype=torch.float32, device=self.shape.device).unbind(0)
        positions = torch.full((self.shape.batch, most), -1, device=self.shape.device)
        for row, pages in enumerate(rows):
            start = 0
            for page in pages:
                end = start + page.tokens
                k[row, :, start:end], v[row, :, start:end] = self._decode(layer, start, page)
                positions[row, start:end] = torch.arange(start, end, device=positions.device)
                start = end
        return k, v, positions

    def crop(self, row: int, length: int) -> None:
        if length == 0:
            self._sealed[row] = 0
            self._pages[row] = [() for _ in self._pages[row]]
        elif length < self._sealed[row]:
            raise CapsError(cannot_crop(self.spec, row, length, self._sealed[row]))

    def fork(self, rows: Sequence[int]) -> "PagedTier":
        out = copy(self)
        out.shape = replace(self.shape, batch=len(rows))
        out._sealed = [self._sealed[row] for row in rows]
        out._pages = [list(self._pages[row]) for row in rows]
        return out

    def storages(self) -> dict[str, list[Tensor]]:
        found: dict[str, list[Tensor]] = {}
        for page in self._unique():
            for name, part in page.all().items():
                found.setdefault(name, []).append(part)
        return found

    def state(self) -> tuple[Parts, Meta]:
        """(tensors, meta) from which `load` makes an equal tier; a page that rows share stands once."""
        pages = self._unique()
        place = {id(page): index for index, page in enumerate(pages)}
        tensors = {f"{index}.{name}": part for index, page in enumerate(pages) for name, part in page.all().items()}
        rows = [[[place[id(page)] for page in layer] for layer in row] for row in self._pages]
        return tensors, Meta(sealed=list(self._sealed), tokens=[page.tokens for page in pages], rows=rows)

    def load(self, tensors: Parts, meta: Meta) -> None:
        """Take over the `state` of a tier of this form. Raises DataError where it has another shape."""
        tokens = meta["tokens"]
        check_rows(self.shape, meta["rows"], meta["sealed"])
        parts: list[Parts] = [{} for _ in tokens]
        for key, tensor in tensors.items():
            index, _, name = key.partition(".")
            parts[int(index)][name] = tensor
        pages = [Page(count, part, part.pop("sinks", None)) for count, part in zip(tokens, parts, strict=True)]
        self._pages = [[tuple(pages[index] for index in layer) for layer in row] for row in meta["rows"]]
        self._sealed = list(meta["sealed"])

    def append(self, row: int, layer: int, parts: Parts) -> None:
        """Take the parts of the next block of a row and layer as they are, as if its tokens had been sealed."""
        tokens = self.forms[layer].unit
        self._pages[row][layer] = self._joined(self._pages[row][layer], Page(tokens, parts))
        if layer == self.shape.layers - 1:
            self._sealed[row] += tokens

    def blocks(self, row: int, layer: int) -> Iterator[Parts]:
        """The parts of each block of a row and layer, in order."""
        for page in self._pages[row][layer]:
            for index in range(page.tokens // self.forms[layer].unit):
                yield {name: part[:, index : index + 1] for name, part in page.parts.items()}

    def adopt(self, row: int, other: Tier) -> None:
        assert isinstance(other, PagedTier)
        self._pages[row], self._sealed[row] = list(other._pages[0]), other._sealed[0]

    def _extend(self, layer: int, pages: Pages, k: Tensor, v: Tensor) -> Pages:
        start, tokens = 0, k.shape[1]
        first = sum(page.tokens for page in pages)
        while start < tokens:
            end = min(tokens, start + (self._space(pages) or self.page_tokens))
            pages = self._joined(pages, self._encode(layer, first + start, k[:, start:end], v[:, start:end]))
            start = end
        return pages

    def _joined(self, pages: Pages, page: Page) -> Pages:
        return (*pages[:-1], pages[-1].join(page)) if self._space(pages) else (*pages, page)

    def _space(self, pages: Pages) -> int:
        """Tokens that the last page still takes."""
        return self.page_tokens - pages[-1].tokens if pages else 0

    def _encode(self, layer: int, first: int, k: Tensor, v: Tensor) -> Page:
        sinks, count = None, self.sinks if first == 0 else 0
        if count:
            sinks = torch.stack([k[:, :count], v[:, :count]], 2)
        if self.rope is not None:
            k = turn(k, self.rope, torch.arange(first, first + k.shape[1], device=k.device), back=True)
        if count:
            # What stands in their place must not widen any range: their neighbour.
            k, v = (torch.cat([x[:, count : count + 1].expand(-1, count, -1), x[:, count:]], 1) for x in (k, v))
        return Page(k.shape[1], self.forms[layer].encode(k, v), sinks)

    def _decode(self, layer: int, first: int, page: Page) -> tuple[Tensor, Tensor]:
        k, v = self.forms[layer].decode(page.parts)
        if self.rope is not None:
            k = turn(k, self.rope, torch.arange(first, first + page.tokens, device=k.device))
        if page.sinks is not None:
            count = page.sinks.shape[1]
            exact = page.sinks.float().unbind(2)
            k, v = torch.cat([exact[0], k[:, count:]], 1), torch.cat([exact[1], v[:, count:]], 1)
        return k, v

    def _attend_row(self, layer: int, pages: Pages, q: Tensor, positions: Tensor) -> Part:
        """q [G, N, D] with the scale in it; N runs over the query heads of a key head, then over nodes."""
        done: list[Part] = []
        start = 0
        for page in pages:
            end = start + page.tokens
            k, v = self._decode(layer, start, page)
            seen = self.spec.sees(positions[:, None], torch.arange(start, end, device=positions.device)[None, :])
            done.append(attend(q, k, v, None if seen is None else seen.repeat(q.shape[1] // positions.shape[0], 1)))
            start = end
        return merge(done)

    def _unique(self) -> list[Page]:
        return list({id(page): page for row in self._pages for layer in row for page in layer}.values())


def check_rows(shape: KVShape, rows: Sequence[Sequence[object]], sealed: Sequence[int]) -> None:
    """Raise DataError where stored rows and layers are not as many as the session has."""
    batch, layers = len(rows), {len(row) for row in rows}
    if batch != shape.batch or layers - {shape.layers} or len(sealed) != batch:
        wanted = f"{shape.batch} rows of {shape.layers} layers"
        raise DataError(f"the stored cache has {batch} rows of {sorted(layers)} layers, and the session {wanted}")


def cannot_crop(spec: CacheSpec, row: int, length: int, sealed: int) -> str:
    """Why a row stays as long as it is."""
    return (
        f"row {row} cannot be taken back to {length} tokens: its first {sealed} are sealed in "
        f"{getattr(spec, 'name', type(spec).__name__)}. Keep more tokens open, or prefill the row again."
    )
