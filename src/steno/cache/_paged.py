"""A tier whose rows keep a prefix of their sealed tokens in immutable pages.

A page's tensors are never written after they are made: a seal replaces the last page by itself joined with the new
tokens, or starts another. So forks share pages by reference, and no copy-on-write is needed. Which tokens share a page
depends on positions alone, hence so does every bit of `attend`. Reading one page at a time bounds the scratch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypedDict

import torch
from torch import Tensor

from steno.core import CacheSpec, KVShape
from steno.core.errors import CapsError, DataError

from ._lse import Part, attend, merge

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
    tokens: int
    parts: Parts

    def join(self, other: "Page") -> "Page":
        parts = {name: torch.cat([part, other.parts[name]], 1) for name, part in self.parts.items()}
        return Page(self.tokens + other.tokens, parts)


Pages = tuple[Page, ...]


class Meta(TypedDict):
    """Sealed tokens by row, kept tokens by page, and the numbers of the pages by row and layer: plain data."""

    sealed: list[int]
    tokens: list[int]
    rows: list[list[list[int]]]


class PagedTier:
    """A `core.Tier` over a `Form`; `spec` says what a query sees."""

    def __init__(self, spec: CacheSpec, form: Form, shape: KVShape) -> None:
        self.spec, self.form, self.shape = spec, form, shape
        whole = SCRATCH_BYTES // (2 * 4 * shape.key_heads * shape.head_dim)
        self.page_tokens = max(form.unit, whole // form.unit * form.unit)
        self._sealed = [0] * shape.batch
        self._pages: list[list[Pages]] = [[()] * shape.layers for _ in range(shape.batch)]

    @property
    def sealed(self) -> tuple[int, ...]:
        return tuple(self._sealed)

    def seal(self, row: int, layer: int, k: Tensor, v: Tensor) -> None:
        start = self._sealed[row]
        end = start + k.shape[1]
        kept = self.form.keeps(end) - self.form.keeps(start)
        self._pages[row][layer] = self._extend(self._pages[row][layer], k[:, :kept], v[:, :kept])
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
                part = self._attend_row(pages, grouped, positions[row])
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
                k[row, :, start:end], v[row, :, start:end] = self.form.decode(page.parts)
                positions[row, start:end] = torch.arange(start, end, device=positions.device)
                start = end
        return k, v, positions

    def crop(self, row: int, length: int) -> None:
        if length == 0:
            self._sealed[row] = 0
            self._pages[row] = [() for _ in self._pages[row]]
        elif length < self._sealed[row]:
            raise CapsError(
                f"row {row} cannot be taken back to {length} tokens: its first {self._sealed[row]} are sealed in "
                f"{_name(self.spec)}. Keep more tokens open, or prefill the row again."
            )

    def fork(self, rows: Sequence[int]) -> "PagedTier":
        out = PagedTier(self.spec, self.form, replace(self.shape, batch=len(rows)))
        out._sealed = [self._sealed[row] for row in rows]
        out._pages = [list(self._pages[row]) for row in rows]
        return out

    def storages(self) -> dict[str, list[Tensor]]:
        found: dict[str, list[Tensor]] = {}
        for page in self._unique():
            for name, part in page.parts.items():
                found.setdefault(name, []).append(part)
        return found

    def state(self) -> tuple[Parts, Meta]:
        """(tensors, meta) from which `load` makes an equal tier; a page that rows share stands once."""
        pages = self._unique()
        place = {id(page): index for index, page in enumerate(pages)}
        tensors = {f"{index}.{name}": part for index, page in enumerate(pages) for name, part in page.parts.items()}
        rows = [[[place[id(page)] for page in layer] for layer in row] for row in self._pages]
        return tensors, Meta(sealed=list(self._sealed), tokens=[page.tokens for page in pages], rows=rows)

    def load(self, tensors: Parts, meta: Meta) -> None:
        """Take over the `state` of a tier of this form. Raises DataError where it has another shape."""
        batch, layers, tokens = len(meta["rows"]), {len(row) for row in meta["rows"]}, meta["tokens"]
        if batch != self.shape.batch or layers - {self.shape.layers} or len(meta["sealed"]) != batch:
            wanted = f"{self.shape.batch} rows of {self.shape.layers} layers"
            raise DataError(f"the stored cache has {batch} rows of {sorted(layers)} layers, and the session {wanted}")
        parts: list[Parts] = [{} for _ in tokens]
        for key, tensor in tensors.items():
            index, _, name = key.partition(".")
            parts[int(index)][name] = tensor
        pages = [Page(count, part) for count, part in zip(tokens, parts, strict=True)]
        self._pages = [[tuple(pages[index] for index in layer) for layer in row] for row in meta["rows"]]
        self._sealed = list(meta["sealed"])

    def _extend(self, pages: Pages, k: Tensor, v: Tensor) -> Pages:
        start, tokens = 0, k.shape[1]
        while start < tokens:
            space = self.page_tokens - pages[-1].tokens if pages else 0
            joins = space > 0
            end = min(tokens, start + (space if joins else self.page_tokens))
            page = Page(end - start, self.form.encode(k[:, start:end], v[:, start:end]))
            pages = (*pages[:-1], pages[-1].join(page)) if joins else (*pages, page)
            start = end
        return pages

    def _attend_row(self, pages: Pages, q: Tensor, positions: Tensor) -> Part:
        """q [G, N, D] with the scale in it; N runs over the query heads of a key head, then over nodes."""
        done: list[Part] = []
        start = 0
        for page in pages:
            end = start + page.tokens
            k, v = self.form.decode(page.parts)
            seen = self.spec.sees(positions[:, None], torch.arange(start, end, device=positions.device)[None, :])
            done.append(attend(q, k, v, None if seen is None else seen.repeat(q.shape[1] // positions.shape[0], 1)))
            start = end
        return merge(done)

    def _unique(self) -> list[Page]:
        return list({id(page): page for row in self._pages for layer in row for page in layer}.values())


def _name(spec: CacheSpec) -> str:
    return str(getattr(spec, "name", type(spec).__name__))
