"""Counter-based randomness. Every number is a pure function of (seed, request, position, purpose).

Nothing depends on call order, batch order or how many drafts were rejected (specs: decode, pitfall P16), which is what
makes sampling with drafts reproduce plain sampling token for token.
"""

from dataclasses import dataclass
from hashlib import blake2b
from struct import pack

_MASK53 = (1 << 53) - 1


@dataclass(frozen=True, slots=True)
class Key:
    """Names one independent stream.

    seed      the user's seed
    request   the request's number; two requests with one seed do not share noise
    position  absolute position of the token that is drawn
    purpose   what it is for: "token", "accept", "draft"
    """

    seed: int
    request: int
    position: int
    purpose: str

    def bits(self, size: int = 128) -> int:
        """A `size`-bit integer (a multiple of 8, at most 512) that identifies the stream; seeds Philox in `decode`."""
        data = pack("<QQq", self.seed & (2**64 - 1), self.request & (2**64 - 1), self.position) + self.purpose.encode()
        return int.from_bytes(blake2b(data, digest_size=size // 8).digest(), "little")

    def uniform(self) -> float:
        """One number in [0, 1) with 53 bits.

        >>> Key(0, 0, 0, "accept").uniform() == Key(0, 0, 0, "accept").uniform()
        True
        """
        return (self.bits(64) & _MASK53) / (1 << 53)
