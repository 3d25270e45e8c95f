"""A tier that keeps some of its sealed tokens, head by head, on one or more shelves.

At a seal point the new block joins the tokens held, a policy ranks them all, and the best `most` of each head stand on
the first shelf. What falls off it goes to the next, in that shelf's form, and from the last it is dropped. A token
never climbs: what was rounded or dropped is gone. So H2O and SnapKV are one dense shelf, quantised pruning one shelf of
few bits, MiKV two, and a staircase of bits by age as many as it has steps.

What is dropped need not be gone without a trace: a tier may fold it into `Notes` of the row and layer, into a slot that
stands for several tokens (attention then counts it so many times), or into a part of attention that has no slots.

Everything is a function of the committed tokens: a policy sees what is held, the open tokens' keys and queries, and
nothing else, and a session seals at fixed lengths only. Tensors are replaced, never written, so forks share them.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from steno.core import CacheSpec, KVShape, Tier
from steno.core.errors import CapsError

from . import _paged
from ._lse import Part, attend, merge
from ._paged import Form
from ._scene import DROP, Policy, Scene

Parts = dict[str, Tensor]


class Shelf(NamedTuple):
    """A form of unit 1, every part [G, T, ...], and the most tokens a head has on it; None: no limit."""

    form: Form
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """Tokens on a shelf, oldest first: positions [G, n] in int32, their ranks [G, n] or None, their parts."""

    positions: Tensor
    ranks: Tensor | None
    parts: Parts

    @property
    def tokens(self) -> int:
        return self.positions.shape[1]

    def take(self, index: Tensor) -> "Held":
        """The tokens `index` [G, m]."""
        ranks = None if self.ranks is None else self.ranks.gather(1, index)
        parts = {name: take(part, index) for name, part in self.parts.items()}
        return Held(self.positions.gather(1, index), ranks, parts)

    def all(self) -> Parts:
        ranks = {} if self.ranks is None else {"ranks": self.ranks}
        return {"positions": self.positions, **ranks, **self.parts}


@dataclass(frozen=True, slots=True)
class Notes:
    """What a row and layer remember beside tokens."""

    parts: Parts

    def all(self) -> Parts:
        return self.parts


class Slots(NamedTuple):
    """k, v [G, n, D] in float32, positions [G, n], and the logarithm of how often each counts [G, n]; None: once."""

    k: Tensor
    v: Tensor
    positions: Tensor
    log_counts: Tensor | None = None


class Meta(TypedDict):
    """Sealed tokens by row, and the numbers of shelves and notes by row and layer: plain data."""

    sealed: list[int]
    rows: list[list[list[int]]]
    notes: list[list[list[int]]]


class KeptTier:
    """A `core.Tier` over the shelves of each layer, whose policy looks at positions alone."""

    def __init__(self, spec: CacheSpec, policy: Policy, shelves: Sequence[Sequence[Shelf]], shape: KVShape) -> None:
        self.spec, self.policy, self.shelves, self.shape = spec, policy, shelves, shape
        self.page_tokens = max(1, _paged.SCRATCH_BYTES // (2 * 4 * shape.key_heads * shape.head_dim))
        self._sealed = [0] * shape.batch
        self._rows: list[list[tuple[Held, ...]]] = [[()] * shape.layers for _ in range(shape.batch)]
        self._notes: list[list[tuple[Notes, ...]]] = [[()] * shape.layers for _ in range(shape.batch)]
        self._seen: tuple[Tensor, Tensor] | None = None

    @property
    def sealed(self) -> tuple[int, ...]:
        return tuple(self._sealed)

    def seal(self, row: int, layer: int, k: Tensor, v: Tensor) -> None:
        scene, old = self._scene(row, layer, k, v)
        ranks = self.rank(row, scene)
        new = k, v, scene.positions[:, -k.shape[1] :]
        self._rows[row][layer] = self._place(row, layer, old, ranks, new)
        self._advance(row, layer, k.shape[1])

    def rank(self, row: int, scene: Scene) -> Tensor:
        """[G, S]: what the policy makes of a seal point."""
        return self.policy.rank(scene)

    def folded(self, row: int, layer: int, k: Tensor, v: Tensor, where: Tensor) -> Parts | None:
        """The notes once k, v [G, n, D] at `where` [G, n] of a row and layer are dropped; None: as they were."""
        return None

    def beyond(self, row: int, layer: int, q: Tensor) -> Part | None:
        """The part of q [G, N, D], the scale in them, over what has no slots; None: there is none."""
        return None

    def noted(self, row: int, layer: int) -> Parts:
        """The notes of a row and layer, empty at first."""
        return self._notes[row][layer][0].parts if self._notes[row][layer] else {}

    def attend(self, layer: int, q: Tensor, positions: Tensor, scale: float) -> Part:
        out = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
        lse = torch.full(q.shape[:-1], -torch.inf, dtype=torch.float32, device=q.device)
        for row in range(q.shape[0]):
            grouped = q[row].float().mul(scale).reshape(self.shape.key_heads, -1, q.shape[-1])
            done = [attend(grouped, s.k, s.v, log_counts=s.log_counts) for s in self._pages(row, layer)]
            more = self.beyond(row, layer, grouped)
            done += [] if more is None else [more]
            if done:
                part = merge(done)
                out[row], lse[row] = part[0].view(q.shape[1:]), part[1].view(q.shape[1:-1])
        return out, lse

    def materialise(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.counted(layer)[:3]

    def counted(self, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What `materialise` gives, and the logarithm of how often each slot counts [B, G, S]."""
        rows = [list(self._pages(row, layer)) for row in range(self.shape.batch)]
        most = max((sum(page.k.shape[1] for page in pages) for pages in rows), default=0)
        shape = (self.shape.batch, self.shape.key_heads, most)
        k, v = torch.zeros(2, *shape, self.shape.head_dim, device=self.shape.device).unbind(0)
        positions = torch.full(shape, -1, device=self.shape.device)
        log_counts = torch.zeros(shape, device=self.shape.device)
        for row, pages in enumerate(rows):
            start = 0
            for page in pages:
                here = (row, slice(None), slice(start, start + page.k.shape[1]))
                k[here], v[here], positions[here] = page[:3]
                if page.log_counts is not None:
                    log_counts[here] = page.log_counts
                start += page.k.shape[1]
        return k, v, positions, log_counts

    def crop(self, row: int, length: int) -> None:
        if length == 0:
            self._sealed[row] = 0
            self._rows[row] = [() for _ in self._rows[row]]
            self._notes[row] = [() for _ in self._notes[row]]
        elif length < self._sealed[row]:
            raise CapsError(_paged.cannot_crop(self.spec, row, length, self._sealed[row]))

    def fork(self, rows: Sequence[int]) -> "KeptTier":
        out = copy(self)
        out.shape = replace(self.shape, batch=len(rows))
        out._sealed = [self._sealed[row] for row in rows]
        out._rows = [list(self._rows[row]) for row in rows]
        out._notes = [list(self._notes[row]) for row in rows]
        return out

    def storages(self) -> dict[str, list[Tensor]]:
        found: dict[str, list[Tensor]] = {}
        for item in self._unique():
            for name, part in item.all().items():
                found.setdefault(name, []).append(part)
        return found

    def state(self) -> tuple[Parts, Meta]:
        """(tensors, meta) from which `load` makes an equal tier; what rows share stands once."""
        found = self._unique()
        place = {id(item): index for index, item in enumerate(found)}
        tensors = {f"{index}.{name}": part for index, item in enumerate(found) for name, part in item.all().items()}
        rows, notes = (
            [[[place[id(item)] for item in layer] for layer in row] for row in both]
            for both in (self._rows, self._notes)
        )
        return tensors, Meta(sealed=list(self._sealed), rows=rows, notes=notes)

    def load(self, tensors: Parts, meta: Meta) -> None:
        """Take over the `state` of a tier of this form. Raises DataError where it has another shape."""
        _paged.check_rows(self.shape, meta["rows"], meta["sealed"])
        parts: dict[int, Parts] = {}
        for key, tensor in tensors.items():
            index, _, name = key.partition(".")
            parts.setdefault(int(index), {})[name] = tensor
        noted = {index for row in meta["notes"] for layer in row for index in layer}
        notes = {index: Notes(parts[index]) for index in noted}
        held = {
            i: Held(part.pop("positions"), part.pop("ranks", None), part) for i, part in parts.items() if i not in noted
        }
        self._rows = [[tuple(held[index] for index in layer) for layer in row] for row in meta["rows"]]
        self._notes = [[tuple(notes[index] for index in layer) for layer in row] for row in meta["notes"]]
        self._sealed = list(meta["sealed"])

    def _scene(self, row: int, layer: int, k: Tensor, v: Tensor) -> tuple[Scene, list[tuple[Tensor, Tensor]]]:
        """The seal point at which k, v [G, T, D] join, and (k, v) of what each shelf holds."""
        q, near = self._seen or (k.new_zeros(self.shape.query_heads, 0, k.shape[2]), k[:, :0])
        self._seen = None
        start, (groups, tokens, _) = self._sealed[row], k.shape
        held = self._rows[row][layer]
        new = torch.arange(start, start + tokens, dtype=torch.int32, device=k.device).repeat(groups, 1)
        old = [shelf.form.decode(h.parts) for shelf, h in zip(self.shelves[layer], held, strict=False)]
        counts = [_log_counts(h) for h in held]
        past = [h.positions.float() * 0 if h.ranks is None else h.ranks for h in held]
        scene = Scene(
            layer=layer,
            keys=torch.cat([*(pair[0] for pair in old), k.float()], 1),
            positions=torch.cat([*(h.positions for h in held), new], 1),
            past=torch.cat([*past, torch.zeros(groups, tokens, device=k.device)], 1),
            q=q.float().unflatten(0, (groups, -1)), near=near.float(), start=start, sealing=tokens,
            log_counts=torch.cat([*counts, torch.zeros(groups, tokens, device=k.device)], 1),
        )  # fmt: skip
        return scene, old

    def _advance(self, row: int, layer: int, tokens: int) -> None:
        if layer == self.shape.layers - 1:
            self._sealed[row] += tokens

    def adopt(self, row: int, other: Tier) -> None:
        assert isinstance(other, KeptTier)
        self._rows[row], self._notes[row] = list(other._rows[0]), list(other._notes[0])
        self._sealed[row] = other._sealed[0]

    def _place(
        self,
        row: int,
        layer: int,
        old: list[tuple[Tensor, Tensor]],
        ranks: Tensor,
        new: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Held, ...]:
        """The shelves after the candidates found theirs; `ranks` [G, S] go by shelf, the new ones last."""
        held = self._rows[row][layer]
        k, v, where = new
        by_shelf = ranks.split([*(h.tokens for h in held), k.shape[1]], 1)
        falling = by_shelf[-1]
        out: list[Held] = []
        for index, shelf in enumerate(self.shelves[layer]):
            both = Held(where, falling, shelf.form.encode(k, v))
            if index < len(held):
                both = _join(Held(held[index].positions, by_shelf[index], held[index].parts), both)
                k, v = torch.cat([old[index][0], k.float()], 1), torch.cat([old[index][1], v.float()], 1)
            assert both.ranks is not None
            wanted = int((both.ranks[0] > DROP).sum())
            keep = wanted if shelf.most is None else min(wanted, shelf.most)
            order = both.ranks.sort(dim=1, descending=True, stable=True).indices
            stay, leave = order[:, :keep].sort(1).values, order[:, keep:].sort(1).values
            kept = both.take(stay) if keep < both.tokens else both
            # A shelf without a limit never chooses.
            remembers = self.policy.remembers and shelf.most is not None
            out.append(kept if remembers else replace(kept, ranks=None))
            where, falling = both.positions.gather(1, leave), both.ranks.gather(1, leave)
            k, v = take(k, leave), take(v, leave)
            if not k.shape[1] and index + 1 >= len(held):
                break
        if k.shape[1]:
            self.note(row, layer, self.folded(row, layer, k.float(), v.float(), where))
        return tuple(out)

    def note(self, row: int, layer: int, parts: Parts | None) -> None:
        """Put `parts` in place of a row's and layer's notes; None leaves them."""
        if parts is not None:
            self._notes[row][layer] = (Notes(parts),)

    def _pages(self, row: int, layer: int) -> Iterator[Slots]:
        """What a row holds, a page at a time."""
        for shelf, held in zip(self.shelves[layer], self._rows[row][layer], strict=False):
            for start in range(0, held.tokens, self.page_tokens):
                span = slice(start, start + self.page_tokens)
                k, v = shelf.form.decode({name: part[:, span] for name, part in held.parts.items()})
                counts = _log_counts(held)[:, span] if "counts" in held.parts else None
                yield Slots(k, v, held.positions[:, span], counts)

    def _unique(self) -> list[Held | Notes]:
        held = [item for row in self._rows for layer in row for item in layer]
        notes = [item for row in self._notes for layer in row for item in layer]
        return list({id(item): item for item in (*held, *notes)}.values())


class ObservingTier(KeptTier):
    """A `core.Observer`: its policy looks at attention too."""

    def observe(self, row: int, layer: int, q: Tensor, k: Tensor) -> None:
        self._seen = q, k


def _log_counts(held: Held) -> Tensor:
    """The logarithm of how many tokens each slot stands for [G, n]."""
    counts = held.parts.get("counts")
    return held.positions.float() * 0 if counts is None else counts.float().log()


def take(x: Tensor, index: Tensor) -> Tensor:
    """x [G, T, ...] at index [G, m]."""
    wide = index.view(*index.shape, *[1] * (x.ndim - 2)).expand(*index.shape, *x.shape[2:])
    return x.gather(1, wide)


def _join(a: Held, b: Held) -> Held:
    assert a.ranks is not None
    assert b.ranks is not None
    parts = {name: torch.cat([part, b.parts[name]], 1) for name, part in a.parts.items()}
    return Held(torch.cat([a.positions, b.positions], 1), torch.cat([a.ranks, b.ranks], 1), parts)
