"""Bytes to payload and back through a predictor: batched lanes, and drafts that save passes while decoding.

Speculative decompression: the next symbols are guessed from what is already decoded, one pass scores all of them, and
the range decoder goes on for as long as the guesses were right. The scores it uses are those a plain decoder would
compute, so neither the format nor the bytes know of it. We know of no earlier description of this.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steno.core.errors import StenoError
from steno.core.predictor import Predictor

from . import _coder
from .base import Corrupt, Draft, Spelling
from .frequencies import tables

I32 = npt.NDArray[np.int32]

LANES = 16
"""Most lanes of a chunk."""

PER_LANE = 1024
"""Symbols that are worth a lane of its own: each costs about 20 bytes, because its first symbols have no context."""

BLOCK = 32
"""Columns of one pass while encoding."""

SLACK = 8
"""Bytes a decoder may want past the end of a code: its last zero bytes are not stored."""

DRAFT = 12
"""Most symbols drafted per lane and pass."""


@dataclass(slots=True)
class Passes:
    """What decoding took. `passes` of the model against the `plain` number without drafts."""

    passes: int = 0
    plain: int = 0
    drafted: int = 0
    right: int = 0

    def add(self, other: "Passes") -> None:
        self.passes += other.passes
        self.plain += other.plain
        self.drafted += other.drafted
        self.right += other.right


@dataclass(frozen=True, slots=True, kw_only=True)
class Neural:
    """A predictor and its spelling, ready to code chunks. `places`: rank of every symbol by the bytes it stands for."""

    predictor: Predictor
    spelling: Spelling
    places: I32

    @staticmethod
    def of(predictor: Predictor, spelling: Spelling) -> "Neural":
        return Neural(predictor=predictor, spelling=spelling, places=_places(predictor.vocab, spelling))

    def symbols(self, data: bytes) -> list[int] | None:
        """The symbols of `data`, or None where they would not give the same bytes back."""
        try:
            ids = self.spelling.encode_bytes(data)
            same = self.spelling.decode_bytes(ids) == data
        except (StenoError, ValueError, UnicodeError):
            return None
        return ids if same and all(0 <= i < self.predictor.vocab for i in ids) else None

    def lanes(self, symbols: int) -> int:
        return max(1, min(LANES, symbols // PER_LANE))

    def encode(self, ids: Sequence[int], lanes: int, adapt: bool) -> bytes:
        """The payload of a chunk."""
        coder = self._coder(len(ids), lanes, adapt)
        table = np.full((lanes, coder.per_lane), -1, np.int32)
        table.ravel()[: len(ids)] = ids
        before = np.concatenate([np.full((lanes, 1), self.predictor.start, np.int32), table[:, :-1]], axis=1)
        before[table < 0] = -1
        streams, at = self.predictor.open(lanes), 0
        while at < coder.per_lane:
            width = min(BLOCK, streams.room(), coder.per_lane - at)
            scores = streams.ahead(np.ascontiguousarray(before[:, at : at + width]))
            coder.encode(scores, np.maximum(table[:, at : at + width], 0))
            streams.keep(np.count_nonzero(before[:, at : at + width] >= 0, axis=1).tolist())
            at += width
        return coder.finish()

    def decode(
        self,
        payload: bytes,
        symbols: int,
        lanes: int,
        adapt: bool,
        *,
        draft: Callable[[_coder.Chunk], Draft] | None = None,
        most: int = DRAFT,
    ) -> tuple[bytes, Passes]:
        """The bytes of a chunk. `draft` makes the source of guesses (default: the mixer's own longest match).

        Raises Corrupt where the payload is not one that `encode` made.
        """
        coder = self._coder(symbols, lanes, adapt)
        coder.open(payload)
        source = coder if draft is None else draft(coder)
        count = Passes(plain=coder.per_lane if symbols else 0)
        out = np.full((lanes, coder.per_lane), -1, np.int32)
        # A lane of n symbols is asked n times; the last lanes may be shorter.
        reach = [min(coder.per_lane, max(0, symbols - lane * coder.per_lane)) for lane in range(lanes)]
        pending = np.array([self.predictor.start if n else -1 for n in reach], np.int32)
        streams, at = self.predictor.open(lanes), 0
        pace = _Pace(most, min(0.15 * lanes, 0.6))
        while symbols and at < coder.per_lane:
            live = [lane for lane in range(lanes) if at < reach[lane]]
            width = min(1 + pace.ask(), streams.room(), coder.per_lane - at)
            tokens, counts = _forest(pending, source, width, live, self.predictor.vocab)
            scores = streams.ahead(tokens)
            steps, found = coder.decode(scores, tokens, counts)
            if coder.overrun > SLACK:
                raise Corrupt("the payload ends before its symbols do")
            out[:, at : at + steps] = found[:, :steps]
            taken = [min(steps, reach[lane] - at) if lane in live else 0 for lane in range(lanes)]
            streams.keep(taken)
            at += steps
            pending = np.array([found[b, steps - 1] if at < reach[b] else -1 for b in range(lanes)], np.int32)
            count.passes += 1
            count.drafted += tokens.shape[1] - 1
            count.right += steps - 1
            pace.tell(tokens.shape[1] - 1, steps - 1)
        ids = out.ravel()[:symbols].tolist()
        try:
            return self.spelling.decode_bytes(ids), count
        except (StenoError, ValueError, UnicodeError) as error:
            raise Corrupt(f"the payload spells no text: {error}") from None

    def _coder(self, symbols: int, lanes: int, adapt: bool) -> _coder.Chunk:
        return _coder.Chunk(tables=tables(), places=self.places, lanes=lanes, symbols=symbols, adapt=adapt)


@dataclass(slots=True)
class _Pace:
    """How many symbols to draft: where (1 + expected right ones) / cost of the pass is best.

    `cost` is what one more column costs beside the first; columns of many lanes keep the processor busy by themselves.
    """

    most: int
    cost: float
    rate: float = 0.6
    waited: int = 0

    def ask(self) -> int:
        best, gain, expected, power = 0, 1.0, 1.0, 1.0
        for width in range(1, self.most + 1):
            power *= self.rate
            expected += power
            if expected / (1 + self.cost * width) > gain:
                best, gain = width, expected / (1 + self.cost * width)
        self.waited = 0 if best else self.waited + 1
        # A short draft now and then notices where the text has become easier.
        return best or (self.waited % 16 == 0 and self.most > 0)

    def tell(self, drafted: int, right: int) -> None:
        for hit in [1.0] * right + [0.0] * (right < drafted):
            self.rate += (hit - self.rate) / 12


def _forest(pending: I32, source: Draft, width: int, live: list[int], vocab: int) -> tuple[I32, I32]:
    """(tokens [B, W], counts [B]): what is certain, then guesses, as far as every living lane has some."""
    guesses = source.draft(width - 1) if width > 1 else np.empty((len(pending), 0), np.int32)
    usable = (guesses >= 0) & (guesses < vocab)
    reach = np.cumprod(usable, axis=1).sum(axis=1) if width > 1 else np.zeros(len(pending), np.int64)
    # All lanes move in step, so a pass goes no further than the lane with the fewest guesses.
    common = int(min(reach[lane] for lane in live))
    tokens = np.full((len(pending), 1 + common), -1, np.int32)
    tokens[:, 0] = pending
    tokens[live, 1:] = guesses[live, :common]
    counts = np.zeros(len(pending), np.int32)
    counts[live] = 1 + common
    return tokens, counts


def _places(vocab: int, spelling: Spelling) -> I32:
    """Rank of every symbol by its bytes, so that symbols that begin alike stand under one node of the tree."""
    words: list[bytes] = []
    for i in range(vocab):
        try:
            words.append(spelling.token_bytes(i))
        except (StenoError, ValueError, UnicodeError, IndexError):
            words.append(b"")
    places = np.empty(vocab, np.int32)
    places[sorted(range(vocab), key=lambda i: (words[i], i))] = np.arange(vocab, dtype=np.int32)
    return places
