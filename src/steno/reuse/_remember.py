"""A model that remembers prompts: its sessions start behind what a prefix cache knows of a text.

    model = Remembering(load(spec), PrefixCache(memory_bytes=1 << 30))

It is a model like any other, for the decoding loop and for everything above it. What comes out is what the model alone
gives: bit for bit where its sessions promise that of chains.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from steno.core import CacheSpec, Model, Session
from steno.core.stretch import Keeper
from steno.core.through import ThroughModel, ThroughSession

from ._prefix import PrefixCache

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]


class Remembering(ThroughModel):
    """A model whose sessions look prompts up in a prefix cache. Implements `core.Model`."""

    def __init__(self, model: Model, cache: PrefixCache) -> None:
        super().__init__(model)
        self.cache = cache

    def open(self, batch: int, capacity: int, cache: CacheSpec | None = None) -> Session:
        session = self.model.open(batch, capacity, cache)
        return RememberingSession(session, self.cache) if isinstance(session, Keeper) else session


class RememberingSession(ThroughSession):
    """A `core.Session` whose `prefill` of an empty row starts behind what is known of its prompt."""

    def __init__(self, session: Keeper, cache: PrefixCache) -> None:
        super().__init__(session)
        self.session, self.cache = session, cache

    def prefill(self, prompts: Sequence[Sequence[int]], *, last: bool = False) -> "Floats | None":
        session, cache = self.session, self.cache
        size = cache.whole_tokens if session.whole else cache.block
        fresh = [row for row, ids in enumerate(prompts) if len(ids) > last and session.lengths[row] == 0]
        known: dict[int, list[str]] = {}
        for row in fresh:
            # With `last`, the last token has to run: its logits are asked for.
            usable = prompts[row][: len(prompts[row]) - last]
            known[row] = cache.keys(session.stamp, usable, size)
            self._restore(row, known[row])
            cache.stats.asked += len(prompts[row])
            cache.stats.found += session.lengths[row]
            if session.whole:
                for stop in range(session.lengths[row] + size, len(usable) // size * size + 1, size):
                    piece = prompts[row][session.lengths[row] : stop]
                    session.prefill([piece if other == row else [] for other in range(len(prompts))])
                    self._store(row, prompts[row], known[row], stop // size - 1)
        rest = [ids[session.lengths[row] if row in known else 0 :] for row, ids in enumerate(prompts)]
        out = session.prefill(rest, last=last)
        for row, keys in known.items():
            if not session.whole:
                for index in range(len(keys)):
                    self._store(row, prompts[row], keys, index)
            cache.touch(keys)
        return out

    def _restore(self, row: int, keys: Sequence[str]) -> None:
        """Put what is known of a text into an empty row."""
        session, stamp = self.session, self.session.stamp
        if session.whole:
            for key in reversed(keys):
                stretch = self.cache.get(key, stamp) if key in self.cache else None
                if stretch is not None:
                    return session.load(row, stretch)
        else:
            for key in keys:
                stretch = self.cache.get(key, stamp)
                if stretch is None:
                    return None
                session.load(row, stretch)
        return None

    def _store(self, row: int, ids: Sequence[int], keys: Sequence[str], index: int) -> None:
        """Hold block `index` of a row, or all up to its end where rows are stored whole."""
        if keys[index] in self.cache:
            return
        size = self.cache.whole_tokens if self.session.whole else self.cache.block
        start, stop = 0 if self.session.whole else index * size, (index + 1) * size
        stretch = self.session.save(row, start, stop)
        self.cache.put(keys[index], stretch, self.session.stamp, ids[start:stop])

    def fork(self, rows: Sequence[int]) -> "RememberingSession":
        twin = self.session.fork(rows)
        assert isinstance(twin, Keeper)
        return RememberingSession(twin, self.cache)
