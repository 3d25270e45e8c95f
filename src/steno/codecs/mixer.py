"""Adaptation while coding: binary decisions down a tree of symbols, their odds mixed from the model and from counts.

A symbol is coded as the bits of its rank, highest first. At every node of this tree the model's frequencies give one
probability exactly. Beside it stand an adaptive correction of it, counts of what the node did so far, bit histories
under six hashed contexts (the last 1, 2, 3, 4 and 6 symbols; the second and third last), and what followed the
longest repeated stretch. A gated linear layer mixes their log-odds, learning by gradient descent on code length
(logistic mixing: Mahoney 2005, "Adaptive weighing of context models for lossless data compression", section 3; the
histories are his indirect context models). Spec: dynamic evaluation restricted to fixed-point state.

Integers only, so that a decoder finds the same state again on any machine. This is the reference; the engine's mixer
(native/coder.cpp) finds the same numbers.
"""

from functools import lru_cache

import numpy as np

from . import _tables
from ._tables import ODDS

ORDERS = 6
LM, TRIM, UNI, HASHED, MATCH, BIAS = 0, 1, 2, 3, 3 + ORDERS, 4 + ORDERS
INPUTS = BIAS + 1
GRID = 25
MIN_MATCH, MAX_MATCH = 4, 32
RATE, HEAVIEST = 6, 1 << 22
OPEN = 0xFFFFFFFF
U32 = 0xFFFFFFFF
FIRST_WEIGHTS = (40000, 16000, 1000, *(9000,) * ORDERS, 14000, 0)


def scatter(x: int) -> int:
    """A hash of 32 bits (Wellons 2018, `lowbias32`)."""
    x ^= x >> 16
    x = x * 0x7FEB352D & U32
    x ^= x >> 15
    x = x * 0x846CA68B & U32
    return x ^ x >> 16


@lru_cache(maxsize=1)
def _curves() -> tuple[list[int], list[int]]:
    """(ln x for 11-bit mantissas, logistic) as plain integers."""
    return _tables.logarithms().tolist(), _tables.logistic().tolist()


def log(x: int) -> int:
    """ln x in Q16 for x >= 1, from 11 bits of mantissa."""
    table, e = _curves()[0], x.bit_length() - 1
    mantissa = x >> (e - 11) if e >= 11 else x << (11 - e)
    return e * table[2048] + table[mantissa - 2048]


def odds(yes: int, no: int) -> int:
    """ln(yes / no) in units of 1/256 nat."""
    return max(-ODDS, min(ODDS, (log(yes) - log(no)) >> 8))


def squash(x: int) -> int:
    """The probability with log-odds x, in Q16."""
    return _curves()[1][max(-ODDS, min(ODDS, x)) + ODDS]


@lru_cache(maxsize=1)
def _stretched() -> list[int]:
    return [odds(2 * i + 1, 8191 - 2 * i) for i in range(4096)]


class Counter:
    """A probability in Q22 and how often it was moved: its step is 1 / (count + 1.5), down to 1 / `limit`."""

    __slots__ = ("count", "limit", "p")

    def __init__(self, p: int, limit: int) -> None:
        self.p, self.count, self.limit = p << 6, 0, limit

    def odds(self) -> int:
        return _stretched()[self.p >> 10]

    def learn(self, bit: int) -> None:
        self.p += (((bit << 22) - self.p) * (131072 // (2 * self.count + 3))) >> 16
        self.count = min(self.count + 1, self.limit)


class Curve:
    """A correction of log-odds: 25 points, straight lines between them; the nearer point learns."""

    __slots__ = ("at", "points")

    def __init__(self) -> None:
        self.points = [squash((g - GRID // 2) * 256) for g in range(GRID)]
        self.at = 0

    def refine(self, x: int) -> int:
        low, w = divmod(x + 12 * 256, 256)
        self.at = low + (w >> 7)
        return (self.points[low] * (256 - w) + self.points[low + 1] * w) >> 8

    def learn(self, bit: int) -> None:
        self.points[self.at] += ((65535 * bit) - self.points[self.at]) >> 6


class _Lane:
    def __init__(self) -> None:
        self.context = [0] * ORDERS
        self.match = -1
        self.length = 0


class Mixer:
    """The adaptive state of one chunk, shared by its lanes. `history` holds every symbol of the chunk coded so far."""

    def __init__(self, depth: int, lanes: int, per_lane: int, symbols: int, rank: list[int]) -> None:
        self.depth, self.per_lane, self.rank = depth, per_lane, rank
        self.history = [OPEN] * max(symbols, 1)
        self.lanes = [_Lane() for _ in range(lanes)]
        self.mask = (1 << _size(10, 20, symbols * ((depth + 3) // 4) * 3 // 2)) - 1
        self.tables: list[dict[int, bytearray]] = [{} for _ in range(ORDERS)]
        self.curve_mask = (1 << _size(10, 16, symbols * depth)) - 1
        self.match_mask = (1 << _size(10, 22, symbols * 2)) - 1
        self.matches: dict[int, int] = {}
        after, total, guess = _tables.histories()
        self.after, self.total, self.guess = after.tolist(), total.tolist(), guess.tolist()
        self.unigram: dict[int, Counter] = {}
        self.maps: dict[tuple[int, int, int], Counter] = {}
        self.match_map: dict[tuple[int, int], Counter] = {}
        self.trim: dict[int, Curve] = {}
        self.final: dict[int, Curve] = {}
        self.weights: tuple[dict[tuple[int, int], list[int]], ...] = ({}, {})
        for lane in range(lanes):
            self._settle(lane, 0)

    def start(self, lane: int) -> None:
        """The next decisions belong to `lane`."""
        self.lane = self.lanes[lane]
        self.expected = -1
        if self.lane.match >= 0 and self.history[self.lane.match] != OPEN:
            self.expected = self.rank[self.history[self.lane.match]]

    def enter(self, level: int, prefix: int) -> None:
        """Look up what each context remembers of the next four bits."""
        self.line = [
            self._find(i, scatter((self.lane.context[i] + prefix * 0x9E3779B1 + level * 0x85EBCA6B) & U32))
            for i in range(ORDERS)
        ]

    def predict(self, level: int, prefix: int, yes: int, no: int) -> int:
        """P(1) in Q16 of bit `level` from the top, under the node `prefix`; the model says yes : no."""
        local = level % 4
        self.within = 1 << local | prefix & ((1 << local) - 1)
        node = 1 << level | prefix
        raw = odds(yes, no)
        self.trimmed = self.trim.setdefault(node & self.curve_mask, Curve())
        self.counted = self.unigram.setdefault(node, Counter(32768, 255))
        x = [raw, _stretched()[self.trimmed.refine(raw) >> 4], self.counted.odds()]
        states = [line[self.within] for line in self.line]
        self.slots = [self.maps.setdefault((i, level, s), Counter(self.guess[s], 255)) for i, s in enumerate(states)]
        x += [slot.odds() if state else 0 for slot, state in zip(self.slots, states, strict=True)]
        self.bit, strength, length = -1, 0, 0
        if self.expected >= 0 and self.expected >> (self.depth - level) == prefix:
            length = self.lane.length
            self.bit = self.expected >> (self.depth - 1 - level) & 1
            first = Counter(65535 - 65536 // (length + 2), 1023)
            self.matched = self.match_map.setdefault((length, min(level, 3)), first)
            strength = self.matched.odds() if self.bit else -self.matched.odds()
        self.x = [*x, strength, 256]
        grade = 0 if self.bit < 0 else 1 + (length >= 8) + (length >= 16) + (length >= 32)
        sets = (min(level, 31), grade), (min(abs(raw) >> 7, 15), sum(state > 0 for state in states[:5]))
        self.chosen = [w.setdefault(k, list(FIRST_WEIGHTS)) for w, k in zip(self.weights, sets, strict=True)]
        self.parts = [self._dot(w) for w in self.chosen]
        mixed = max(-ODDS, min(ODDS, sum(self.parts) >> 1))
        self.last = self.final.setdefault(
            scatter((self.lane.context[0] + node * 0x9E3779B1) & U32) & self.curve_mask, Curve()
        )
        return max(1, min(65535, (squash(mixed) * 3 + self.last.refine(mixed)) >> 2))

    def update(self, bit: int) -> None:
        """Learn the bit that `predict` was asked for."""
        for w, part in zip(self.chosen, self.parts, strict=True):
            error = ((bit << 16) - squash(part)) * RATE
            for i, x in enumerate(self.x):
                w[i] = max(-HEAVIEST, min(HEAVIEST, w[i] + ((x * error + (1 << 19)) >> 20)))
        for part in (self.trimmed, self.last, self.counted, *self.slots):
            part.learn(bit)
        for line in self.line:
            line[self.within] = self.after[line[self.within]][bit]
        if self.bit >= 0:
            self.matched.learn(int(self.bit == bit))

    def take(self, lane: int, step: int, symbol: int) -> None:
        """`symbol` is what stands at `step` of `lane`."""
        at, state, history = lane * self.per_lane + step, self.lanes[lane], self.history
        history[at] = symbol
        if state.match >= 0 and history[state.match] == symbol:
            state.match, state.length = state.match + 1, min(state.length + 1, MAX_MATCH)
            if state.match >= len(history):
                state.match, state.length = -1, 0
        else:
            state.match, state.length = -1, 0
        if step + 1 >= MIN_MATCH:
            h = 0
            for k in range(MIN_MATCH):
                h = (h + history[at - k] + 1) * 0x9E3779B1 & U32
            slot = scatter(h) & self.match_mask
            entry = self.matches.get(slot, -1)
            if state.match < 0 and entry >= 0:
                length, most = 0, min(MAX_MATCH, step + 1, entry)
                while length < most and history[entry - 1 - length] == history[at - length]:
                    length += 1
                if length >= MIN_MATCH:
                    state.match, state.length = entry, length
            self.matches[slot] = at + 1 if at + 1 < len(history) else -1
        self._settle(lane, step + 1)

    def _settle(self, lane: int, length: int) -> None:
        end = lane * self.per_lane + length
        past = [self.history[end - k] + 2 if k <= length else 1 for k in range(1, 7)]
        hashes, h = [], 0
        for k, symbol in enumerate(past, 1):
            h = ((h + symbol) * 0x2C1B3C6D + 0x297A2D39 * k) & U32
            hashes.append(h)
        skip = ((past[1] * 0x2C1B3C6D + past[2]) * 0x846CA68B + 77) & U32
        self.lanes[lane].context = [*hashes[:4], hashes[5], skip]

    def _find(self, order: int, h: int) -> bytearray:
        """16 bytes: a check of the context, then the histories of the 15 nodes of four levels."""
        check, table = h >> 24 | 1, self.tables[order]
        a, b = (table.setdefault(i, bytearray(16)) for i in (h & self.mask, (h & self.mask) ^ 1))
        for line in (a, b):
            if line[0] == check:
                return line
        line = a if self.total[a[1]] <= self.total[b[1]] else b
        line[:] = bytes([check]) + bytes(15)
        return line

    def _dot(self, weights: list[int]) -> int:
        return max(-ODDS, min(ODDS, int(np.dot(weights, self.x)) >> 16))


def _size(least: int, most: int, wanted: int) -> int:
    """log2 of a table that holds `wanted` entries, within bounds."""
    return min(most, max(least, (wanted - 1).bit_length() if wanted > 0 else 0))
