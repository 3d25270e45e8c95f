"""Fields of the container: little-endian, lengths as varints (LEB128, at most 9 bytes)."""

from .base import Corrupt


def varint(value: int) -> bytes:
    """
    >>> varint(300).hex()
    'ac02'
    """
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def text(value: str) -> bytes:
    """A name: its length, then UTF-8; names that are not Unicode keep their bytes."""
    data = value.encode("utf-8", "surrogateescape")
    return varint(len(data)) + data


class Fields:
    """Reads fields one after another. Raises Corrupt where they run out or do not fit."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise Corrupt("a record ends before its fields do")
        self._at += count
        return self._data[self._at - count : self._at]

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self, most: int) -> int:
        value = 0
        for shift in range(0, 63, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value > most:
                    raise Corrupt(f"a field holds {value}, and at most {most} can be right")
                return value
        raise Corrupt("a number in a record has no end")

    def text(self, most: int) -> str:
        return self.take(self.varint(most)).decode("utf-8", "surrogateescape")

    def end(self) -> None:
        if self._at != len(self._data):
            raise Corrupt(f"a record is {len(self._data) - self._at} bytes longer than its fields")
