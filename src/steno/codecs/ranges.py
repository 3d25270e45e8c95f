"""A range coder on integers, carry-propagating, 32 bits (Martin 1979; the carry handling is LZMA's). The reference.

The first byte such a coder makes is always 0 and is not written; at the end the number of the final interval with most
zero bits is taken and zero bytes at the end are dropped, because a decoder reads zeros past the end. The engine's coder
(native/coder.cpp) gives the same bytes.
"""

TOP = 1 << 24
WORD = 0xFFFFFFFF


class RangeEncoder:
    """Symbols, as intervals [low, low + freq) of [0, 2^bits), to bytes."""

    def __init__(self) -> None:
        self._low = 0
        self._range = WORD
        self._out = bytearray()
        self._cache = 0
        self._pending = 0
        self._first = True

    def encode(self, low: int, freq: int, bits: int) -> None:
        unit = self._range >> bits
        self._low += unit * low
        self._range = unit * freq
        while self._range < TOP:
            self._range <<= 8
            self._shift()

    def finish(self) -> bytes:
        high = self._low + self._range - 1
        self._low = next(value for zeros in range(32, -1, -1) if (value := high >> zeros << zeros) >= self._low)
        for _ in range(5):
            self._shift()
        return bytes(self._out).rstrip(b"\0")

    def _shift(self) -> None:
        if self._low < 0xFF000000 or self._low > WORD:
            carry = self._low >> 32
            if not self._first:
                self._out.append((self._cache + carry) & 0xFF)
            self._first = False
            self._out += bytes([(0xFF + carry) & 0xFF]) * self._pending
            self._pending = 0
            self._cache = (self._low >> 24) & 0xFF
        else:
            self._pending += 1
        self._low = (self._low & (TOP - 1)) << 8


class RangeDecoder:
    """Bytes back to symbols: `target` says where in [0, 2^bits) the code lies, `consume` takes the interval found."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._range = WORD
        self._code = 0
        self.overrun = 0
        for _ in range(4):
            self._code = self._code << 8 | self._next()
        self.overrun = 0

    def target(self, bits: int) -> int:
        return min(self._code // (self._range >> bits), (1 << bits) - 1)

    def consume(self, low: int, freq: int, bits: int) -> None:
        unit = self._range >> bits
        self._code -= unit * low
        self._range = unit * freq
        while self._range < TOP:
            self._range <<= 8
            self._code = (self._code << 8 | self._next()) & WORD

    def bit(self, p: int) -> int:
        """A binary symbol whose 1 has p of 65536 parts, at the lower end."""
        one = self._code < (self._range >> 16) * p
        self.consume(0 if one else p, p if one else 65536 - p, 16)
        return int(one)

    def _next(self) -> int:
        if self._at < len(self._data):
            self._at += 1
            return self._data[self._at - 1]
        self.overrun += 1
        return 0
