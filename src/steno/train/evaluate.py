"""Bits per byte on held-out documents, and what xz makes of the same bytes."""

import lzma
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from steno.train.pack import Packed

Logits = Callable[[Tensor], Tensor]


def document_bits(logits: Logits, ids: Sequence[int] | np.ndarray, separator: int, context: int, device: str) -> float:
    """Minus log2 of the probability of a document's tokens, its first token predicted from the separator.

    Windows of `context` tokens overlap by half: every token but those of the first window sees at least half a window.
    """
    whole = np.concatenate([[separator], np.asarray(ids, dtype=np.int64)])
    total, scored = 0.0, 0
    size = len(whole) - 1
    while scored < size:
        stop = min(size, scored + (context if scored == 0 else context // 2))
        start = max(0, stop - context)
        window = torch.from_numpy(whole[start : stop + 1])[None].to(device)
        with torch.no_grad():
            found = logits(window[:, :-1]).float()[0, scored - start :]
        total += F.cross_entropy(found, window[0, 1 + scored - start :], reduction="sum").item()
        scored = stop
    return total / math.log(2)


def bits_per_byte(logits: Logits, packed: Packed, context: int, device: str) -> dict[str, dict[str, float]]:
    """For each bucket with held-out documents: all their bits, their bytes, and the one over the other."""
    table: dict[str, dict[str, float]] = {}
    for name, texts in packed.texts.items():
        stream = packed.valid[name]
        bits = sum(document_bits(logits, stream[t.start : t.stop], packed.separator, context, device) for t in texts)
        size = sum(text.num_bytes for text in texts)
        table[name] = {"bits": bits, "bytes": size, "bits_per_byte": bits / size}
    return table


def quick_loss(  # noqa: PLR0917
    loss: Callable[[Tensor], Tensor], packed: Packed, name: str, rows: int, tokens: int, device: str
) -> float:
    """Mean nats per token on evenly spaced crops of one bucket's held-out tokens: cheap, for the curve."""
    stream = packed.valid[name]
    tokens = min(tokens, len(stream))
    starts = np.linspace(0, len(stream) - tokens, rows).astype(int)
    batch = np.stack([stream[at : at + tokens].astype(np.int64) for at in starts])
    with torch.no_grad():
        return float(loss(torch.from_numpy(batch).to(device)))


def xz_bits_per_byte(data: bytes) -> float:
    """Bits per byte of `xz -9e` on the same bytes."""
    return 8 * len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) / len(data)
