"""Replay: a model that pays for every forward and answers with recorded text.

To measure drafting on real text one needs a model whose outputs are real text; a model of random weights has none. So
the forward runs as it would, and what it chose is replaced: a node whose path so far is the recorded text answers with
the recorded next token, every other node with the model's own choice. Drafts are then accepted exactly as often as they
would be with a model that writes this text, and time is what forwards of that width cost.

Rows keep what the next prompt shares with what they hold (turns of one conversation), as a server does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steno.core import PAD, ROOT, CacheSpec, Model, Nodes, Session, Step, Want
from steno.core.errors import CapsError, DataError
from steno.core.through import ThroughModel, ThroughSession

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Recording:
    """A prompt and what followed it, as ids. `name` says where it is from."""

    name: str
    prompt: tuple[int, ...]
    output: tuple[int, ...]


class Replayed(ThroughModel):
    """`model` with its choices replaced by recordings, which are told apart by their prompts. A `core.Model`.

    cache  the form of sessions that are opened with none

    Raises DataError where two recordings share a prompt, or one has less than two prompt tokens or no output.
    """

    def __init__(self, model: Model, recordings: Sequence[Recording], cache: CacheSpec | None = None) -> None:
        super().__init__(model)
        self.cache = cache
        self.texts: dict[tuple[int, ...], Ints] = {}
        self._kept: dict[tuple[int, int, CacheSpec | None], ReplaySession] = {}
        for recording in recordings:
            # The last prompt token stays pending: a session never sees it in a prefill (contract C5).
            key = recording.prompt[:-1]
            if len(recording.prompt) < 2 or not recording.output:
                raise DataError(f"recording '{recording.name}': a replay needs two prompt tokens and an output.")
            if key in self.texts:
                raise DataError(
                    f"recording '{recording.name}': another one has the same prompt. Leave one of them out."
                )
            self.texts[key] = np.array((*recording.prompt, *recording.output), np.int32)

    @property
    def name(self) -> str:
        return f"{self.model.name} replayed"

    def open(self, batch: int, capacity: int, cache: CacheSpec | None = None) -> "ReplaySession":
        """A session; one of the same form that was opened before is emptied and given again, its prompts kept."""
        cache = cache or self.cache
        key = batch, capacity, cache
        kept = self._kept.get(key)
        if kept is None:
            kept = self._kept[key] = ReplaySession(self.model.open(batch, capacity, cache), batch, self.texts)
        kept.crop([0] * batch)
        return kept


class ReplaySession(ThroughSession):
    """A session whose choices are recorded ones. Implements `core.Session`."""

    def __init__(self, inner: Session, batch: int, texts: dict[tuple[int, ...], Ints]) -> None:
        super().__init__(inner)
        self._texts = texts
        self._ids: list[list[int]] = [[] for _ in range(batch)]
        self._held: list[list[int]] = [[] for _ in range(batch)]
        self._text: list[Ints] = [np.empty(0, np.int32) for _ in range(batch)]
        self._tokens: Ints = np.empty((batch, 0), np.int32)

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(map(len, self._ids))

    def prefill(self, prompts: Sequence[Sequence[int]], *, last: bool = False) -> Floats | None:
        shared = [len(ids) for ids in self._ids]
        rest: list[list[int]] = [[] for _ in self._ids]
        for row, prompt in enumerate(prompts):
            if len(prompt):
                want = [*self._ids[row], *map(int, prompt)]
                # One token at least is run again, so that `last` has its logits.
                same = min(_common(self._held[row], want), len(want) - 1)
                shared[row], rest[row] = same, want[same:]
                self._ids[row] = want
                self._text[row] = self._texts.get(tuple(want), self._text[row])
        try:
            self._shorten(shared)
        except CapsError:
            # A cache that has sealed what would go cannot be shortened: these rows begin anew.
            gone = [n < len(held) for n, held in zip(shared, self._held, strict=True)]
            self._shorten([0 if cut else n for cut, n in zip(gone, shared, strict=True)])
            rest = [list(self._ids[row]) if cut else rest[row] for row, cut in enumerate(gone)]
        out = self.inner.prefill(rest, last=last)
        self._held = [list(ids) for ids in self._ids]
        return out

    def forward(self, nodes: Nodes, want: Want = Want()) -> "ReplayStep":
        self._shorten(self.lengths)
        self._tokens = nodes.tokens.copy()
        return ReplayStep(self.inner.forward(nodes, want), self._chosen(nodes))

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        self.inner.commit(paths)
        for row, path in enumerate(paths):
            new = self._tokens[row, list(path)].tolist()
            self._ids[row] += new
            self._held[row] += new

    def crop(self, lengths: Sequence[int]) -> None:
        if any(n > len(ids) for n, ids in zip(lengths, self._ids, strict=True)):
            raise ValueError(f"crop: to {list(lengths)}, and the rows hold {list(self.lengths)}")
        self._ids = [ids[:n] for n, ids in zip(lengths, self._ids, strict=True)]

    def fork(self, rows: Sequence[int]) -> "ReplaySession":
        self._shorten(self.lengths)
        other = ReplaySession(self.inner.fork(rows), len(rows), self._texts)
        for i, row in enumerate(rows):
            other._ids[i], other._held[i] = list(self._ids[row]), list(self._ids[row])
            other._text[i] = self._text[row]
        return other

    def room(self) -> tuple[int, ...]:
        self._shorten(self.lengths)
        return self.inner.room()

    def _shorten(self, lengths: Sequence[int]) -> None:
        """Make the inner session let go of what was kept for a prompt that did not come."""
        if any(n < len(held) for n, held in zip(lengths, self._held, strict=True)):
            self.inner.crop(lengths)
            self._held = [held[:n] for n, held in zip(lengths, self._held, strict=True)]

    def _chosen(self, nodes: Nodes) -> Ints:
        """[B, W] recorded next tokens of nodes on the recorded path, -1 elsewhere."""
        out = np.full(nodes.tokens.shape, -1, np.int32)
        for row, (tokens, parents) in enumerate(zip(nodes.tokens.tolist(), nodes.parents.tolist(), strict=True)):
            text, length = self._text[row], len(self._ids[row])
            places: list[int] = []
            for column, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
                if parent == PAD:
                    break
                above = length - 1 if parent == ROOT else places[parent]
                place = above + 1
                # -2 marks a node off the path: nothing below it can come back.
                on = above > -2 and place < len(text) and text[place] == token
                places.append(place if on else -2)
                if on and place + 1 < len(text):
                    out[row, column] = text[place + 1]
        return out


class ReplayStep:
    """Outputs of a forward, the recorded choice on top."""

    def __init__(self, inner: Step, chosen: Ints) -> None:
        self._inner = inner
        self._chosen = chosen

    @property
    def argmax(self) -> Ints:
        return np.where(self._chosen >= 0, self._chosen, self._inner.argmax)

    @property
    def logits(self) -> Floats:
        out = self._inner.logits.copy()
        rows, columns = np.nonzero(self._chosen >= 0)
        out[rows, columns, self._chosen[rows, columns]] = out[rows, columns].max(axis=-1) + 1.0
        return out

    def top(self, count: int) -> tuple[Ints, Floats]:
        best, scores = self._inner.top(count)
        ids, values = best.copy(), scores.copy()
        for row, column in np.argwhere(self._chosen >= 0):
            token, old = self._chosen[row, column], ids[row, column]
            kept = old != token
            ids[row, column] = np.concatenate([[token], old[kept]])[:count]
            values[row, column] = np.concatenate([[values[row, column, 0] + 1.0], values[row, column][kept]])[:count]
        return ids, values

    def hidden(self, layer: int) -> Floats:
        return self._inner.hidden(layer)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
