"""A tier in two places: few bits where attention runs, every token as it came somewhere else.

A query scores all sealed tokens by their few bits, head by head, fetches the `fetch` best from afar and puts them in
the place of their codes, keys and values both. So what it sees depends on itself and on what is held, never on what was
fetched before: fetching ahead decides when a token has arrived, not which one is looked at.

Fetching ahead is done by whoever runs beside a query: what the nodes of one forward fetched is near for the next, and a
draft's query asks for what the token it guesses will need. `Traffic` counts how much of what was asked for was near.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steno.core import CacheSpec, KVShape

from ._lse import Part
from ._paged import Form, Meta, PagedTier, Pages

Parts = dict[str, Tensor]


@dataclass(slots=True)
class Traffic:
    """Tokens that queries asked for, per key head, and those of them that the forward before had fetched."""

    asked: int = 0
    near: int = 0


@dataclass(frozen=True, slots=True)
class FarForm:
    """A `_paged.Form` beside which tokens stand as they came: part `far` [G, T, 2, D], in memory or in a file."""

    low: Form
    on_disk: bool

    @property
    def unit(self) -> int:
        return self.low.unit

    def keeps(self, sealed: int) -> int:
        return self.low.keeps(sealed)

    def encode(self, k: Tensor, v: Tensor) -> Parts:
        return {**self.low.encode(k, v), "far": self.put(torch.stack([k, v], 2))}

    def put(self, whole: Tensor) -> Tensor:
        """Where the far copy is kept."""
        return filed(whole.cpu()) if self.on_disk else whole.cpu()

    def decode(self, parts: Parts) -> tuple[Tensor, Tensor]:
        return self.low.decode({name: part for name, part in parts.items() if name != "far"})


class FarTier(PagedTier):
    """A `core.Tier` whose pages are single blocks, so that none is ever joined to another and written again."""

    def __init__(self, spec: CacheSpec, form: FarForm, shape: KVShape, fetch: int) -> None:
        super().__init__(spec, form, shape)
        self.far, self.page_tokens, self.fetch = form, form.unit, fetch
        self.traffic = Traffic()
        self._near: dict[tuple[int, int], Tensor] = {}

    def attend(self, layer: int, q: Tensor, positions: Tensor, scale: float) -> Part:
        out = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
        lse = torch.full(q.shape[:-1], -torch.inf, dtype=torch.float32, device=q.device)
        for row in range(q.shape[0]):
            pages = self._pages[row][layer]
            if pages:
                grouped = q[row].float().mul(scale).reshape(self.shape.key_heads, -1, q.shape[-1])
                part = self._mixed(pages, grouped, (row, layer))
                out[row], lse[row] = part[0].view(q.shape[1:]), part[1].view(q.shape[1:-1])
        return out, lse

    def fork(self, rows: Sequence[int]) -> "FarTier":
        out = super().fork(rows)
        assert isinstance(out, FarTier)
        out.traffic, out._near = Traffic(), {}
        return out

    def crop(self, row: int, length: int) -> None:
        super().crop(row, length)
        if length == 0:
            self._near = {key: near for key, near in self._near.items() if key[0] != row}

    def load(self, tensors: Parts, meta: Meta) -> None:
        far = {name: self.far.put(part) for name, part in tensors.items() if name.endswith(".far")}
        super().load({**tensors, **far}, meta)

    def _mixed(self, pages: Pages, q: Tensor, place: tuple[int, int]) -> Part:
        """Attention of q [G, N, D], the scale in it, over codes with what it fetched in their place."""
        scores = torch.cat([q @ self.forms[place[1]].decode(page.parts)[0].mT for page in pages], 2)
        count = min(self.fetch, scores.shape[2])
        best = scores.sort(dim=2, descending=True, stable=True).indices[..., :count]
        self._count(place, best, scores.shape[2])
        k, v = self._fetch(pages, best)
        exact = (q[:, :, None] * k).sum(-1)
        scores = scores.scatter(2, best, exact)
        top = scores.amax(2, keepdim=True)
        weights = (scores - top).exp_()
        total = weights.sum(2)
        own = weights.gather(2, best)
        # What was fetched stands for itself; the codes of the rest follow, a page at a time.
        out = (own[..., None] * v).sum(2)
        weights = weights.scatter(2, best, 0.0)
        start = 0
        for page in pages:
            out += weights[..., start : start + page.tokens] @ self.forms[place[1]].decode(page.parts)[1]
            start += page.tokens
        return out / total[..., None], total.log() + top[..., 0]

    def _fetch(self, pages: Pages, best: Tensor) -> tuple[Tensor, Tensor]:
        """k, v [G, N, c, D] of the tokens `best` [G, N, c], from the blocks that hold them."""
        unit, dim = self.page_tokens, self.shape.head_dim
        where = best.cpu()
        both = torch.empty(*where.shape, 2, dim, dtype=torch.float32)
        for number in where.div(unit, rounding_mode="floor").unique().tolist():
            head, query, slot = (where.div(unit, rounding_mode="floor") == number).nonzero(as_tuple=True)
            token = where[head, query, slot] - number * unit
            both[head, query, slot] = pages[number].parts["far"][head, token].float()
        k, v = both.to(best.device).unbind(3)
        return k, v

    def _count(self, place: tuple[int, int], best: Tensor, tokens: int) -> None:
        asked = torch.zeros(best.shape[0], tokens, dtype=torch.bool, device=best.device)
        asked.scatter_(1, best.flatten(1), torch.ones_like(best.flatten(1), dtype=torch.bool))
        before = self._near.get(place)
        self.traffic.asked += int(asked.sum())
        if before is not None:
            self.traffic.near += int((asked[:, : before.shape[1]] & before[:, :tokens]).sum())
        self._near[place] = asked


def filed(tensor: Tensor) -> Tensor:
    """A copy of a CPU tensor that lies in a file without a name, which is gone with its last reader."""
    handle, name = tempfile.mkstemp(prefix="steno-far-")
    os.close(handle)
    try:
        out = torch.from_file(name, shared=True, size=tensor.numel(), dtype=tensor.dtype).view(tensor.shape)
    finally:
        os.unlink(name)
    return out.copy_(tensor)
