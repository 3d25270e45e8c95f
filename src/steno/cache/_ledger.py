"""Bytes read from live storages, never from formulas, and the bits per value they come to.

A storage counts once however many tensors look into it, with all of its bytes: a view of a large buffer keeps the whole
buffer alive.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from steno.core import KVShape

Parts = Mapping[str, Sequence[Tensor]]


def resident_bytes(parts: Parts) -> dict[str, int]:
    """Bytes of unique storages by part; one that two parts share counts for the first."""
    return marginal_bytes(parts, {})


def marginal_bytes(parts: Parts, base: Parts) -> dict[str, int]:
    """Bytes that `parts` keep alive beyond those `base` holds: what a fork costs."""
    seen = {_address(tensor) for tensors in base.values() for tensor in tensors}
    found: dict[str, int] = {}
    for name, tensors in parts.items():
        found[name] = 0
        for tensor in tensors:
            if _address(tensor) not in seen:
                seen.add(_address(tensor))
                found[name] += tensor.untyped_storage().nbytes()
    return found


def values(shape: KVShape, tokens: int) -> int:
    """Numbers in the keys and values of `tokens` logical tokens (the sum over rows), of all layers."""
    return 2 * shape.layers * shape.key_heads * shape.head_dim * tokens


def bits_per_value(total_bytes: int, shape: KVShape, tokens: int) -> float:
    """Bits per number of the dense grouped-query cache, metadata included; that cache in bfloat16 has 16."""
    return 8 * total_bytes / values(shape, tokens)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
