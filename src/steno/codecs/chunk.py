"""The coder of one chunk, the reference: `lanes` equal stretches of its symbols, coded in step by one range coder.

At every step each lane codes one symbol, lane 0 first. The lanes share the mixer, so what one of them saw helps the
others; the model sees each lane as a stream of its own, which is what makes a batch. The engine's `_coder.Chunk` has
the same calls, gives the same bytes, and drafts besides.
"""

import numpy as np
import numpy.typing as npt

from .frequencies import num_bits, reference
from .mixer import Mixer
from .ranges import RangeDecoder, RangeEncoder

I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]


class Chunk:
    """places   [V]: the rank of each symbol in the tree, a permutation
    adapt    whether the mixer takes part, or the model's own frequencies decide alone
    """

    def __init__(self, *, places: I32, lanes: int, symbols: int, adapt: bool) -> None:
        self.lanes, self.symbols = lanes, symbols
        self.per_lane = max(-(-symbols // lanes), 1)
        self.steps = 0
        self._rank = [int(p) for p in places]
        self._id = np.argsort(places).tolist()
        self._depth = max((len(places) - 1).bit_length(), 1)
        self._mixer = Mixer(self._depth, lanes, self.per_lane, symbols, self._rank) if adapt else None
        self._encoder = RangeEncoder()

    def encode(self, scores: F32, ids: I32) -> None:
        """Code ids [lanes, W] by the scores [lanes, W, V] of each; what lies beyond a lane's end is ignored."""
        for step in range(ids.shape[1]):
            for lane in range(self.lanes):
                if self._active(lane):
                    self._symbol(lane, scores[lane, step], int(ids[lane, step]))
            self.steps += 1

    def finish(self) -> bytes:
        return self._encoder.finish()

    def open(self, data: bytes) -> None:
        self._decoder = RangeDecoder(data)

    @property
    def overrun(self) -> int:
        """Bytes wanted past the end of the code."""
        return self._decoder.overrun

    def decode(self, scores: F32, tokens: I32, counts: I32) -> tuple[int, I32]:
        """Decode while every lane's scores are known to be right; (steps taken, their ids [lanes, W]).

        tokens [lanes, W]: what stood before each column; column 0 is certain, the others are drafts, `counts` per lane.
        """
        out = np.full(tokens.shape, -1, np.int32)
        good = [1] * self.lanes
        for step in range(tokens.shape[1]):
            active = [lane for lane in range(self.lanes) if self._active(lane)]
            if not active or any(step >= good[lane] for lane in active):
                return step, out
            for lane in active:
                found = out[lane, step] = self._symbol(lane, scores[lane, step], None)
                if step + 1 < counts[lane] and tokens[lane, step + 1] == found:
                    good[lane] = step + 2
            self.steps += 1
        return tokens.shape[1], out

    def _active(self, lane: int) -> bool:
        return lane * self.per_lane + self.steps < self.symbols

    def _symbol(self, lane: int, scores: F32, symbol: int | None) -> int:
        bits = num_bits(len(self._rank))
        frequency = reference(scores[None], bits)[0].astype(np.int64)[self._id]
        mixer, mass, prefix = self._mixer, 1 << bits, 0
        if mixer:
            mixer.start(lane)
        for level in range(self._depth):
            below = self._depth - 1 - level
            low = prefix << (below + 1)
            middle = low + (1 << below)
            if mixer and level % 4 == 0:
                mixer.enter(level, prefix)
            bit = 0
            if middle < len(self._rank):
                no = int(frequency[low:middle].sum())
                yes = mass - no
                p = mixer.predict(level, prefix, yes, no) if mixer else max(1, min(65535, (yes << 16) // mass))
                if symbol is None:
                    bit = self._decoder.bit(p)
                else:
                    bit = self._rank[symbol] >> below & 1
                    self._encoder.encode(0 if bit else p, p if bit else 65536 - p, 16)
                if mixer:
                    mixer.update(bit)
                mass = yes if bit else no
            prefix = prefix << 1 | bit
        found = self._id[prefix]
        if mixer:
            mixer.take(lane, self.steps, found)
        return found
