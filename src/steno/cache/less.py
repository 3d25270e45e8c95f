"""LESS: what eviction drops is folded into a small recurrent state, whose attention is learnt.

Get More with LESS: Synthesizing Recurrence with KV Cache Compression for Efficient LLM Inference, section 3. Tokens
that had the most attention stay (H2O); of all others a state of fixed size remains: sums of features of keys, alone and
times their values. Features of a query and of a key, a pair of small networks per layer, multiply to what the softmax
would have given the pair; so the state joins the softmax over the tokens held as one more part of it.

What differs from the paper: networks are per key head, of two layers, and learn from attention's output before the
output projection, one text after another, for minutes rather than epochs. Without a trained `kernel` it is eviction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from steno.core import Card, KVShape, Span, Tier

from .base import BlockKnob

if TYPE_CHECKING:
    from torch import Tensor

    from steno.core import Model

    from ._recur import Kernel
    from ._witness import Seen

CARD = Card(
    paper="Get More with LESS: Synthesizing Recurrence with KV Cache Compression for Efficient LLM Inference",
    keeps="near",
    breaks=("cache",),
    backends=("hf",),
    requires=("hf",),
)

FEATURES, HIDDEN = 8, 64
NAMES = ("ask1", "ask2", "tell1", "tell2")


@dataclass(frozen=True, kw_only=True)
class Less(BlockKnob):
    """`heavy` tokens per head stay whole; `kernel` is a file that `fit` wrote."""

    card: ClassVar[Card] = CARD
    points: ClassVar = (
        {"kernel": "less-nib", "heavy": 64, "residual": 64},
        {"heavy": 64, "residual": 64},
        {"kernel": "less-nib", "heavy": 128, "residual": 64},
    )

    heavy: Annotated[int, Span(1, 1 << 24, "tokens per head")] = 128
    kernel: str = ""

    def open(self, shape: KVShape) -> Tier:
        from ._dense import DenseForm
        from ._kept import Shelf
        from ._ranks import Received
        from ._recur import Kernel, RecurringTier
        from ._tables import read

        kernels: list[Kernel] = []
        if self.kernel:
            tables = read(self, "kernel", shape)
            for layer in range(shape.layers):
                a, b, c, d = (tables[f"{layer}.{name}"].float() for name in NAMES)
                kernels.append(Kernel((a, b), (c, d)))
        return RecurringTier(self, Received(), Shelf(DenseForm(), self.heavy), kernels, shape)


def fit(
    knob: Less, model: "Model", texts: Sequence[Sequence[int]], path: Path, *, steps: int = 300, rate: float = 3e-3
) -> Less:
    """The knob with kernels trained on what it drops of `texts`, written to `path`."""
    import torch

    from ._recur import Kernel
    from ._tables import write
    from ._witness import witness

    texts_seen = list(witness(model, texts))
    (query_heads, _, dim), groups = texts_seen[0][0].q.shape, texts_seen[0][0].k.shape[0]
    shape = len(texts_seen[0]), query_heads, groups, dim
    noise = torch.Generator().manual_seed(0)
    tables: dict[str, torch.Tensor] = {}
    for layer in range(shape[0]):
        seen = [text[layer] for text in texts_seen]
        lost = [dropped(knob, one) for one in seen]
        sizes = ((dim, HIDDEN), (HIDDEN, FEATURES)) * 2
        weights = [
            (torch.randn(groups, a, b, generator=noise) * a**-0.5).to(seen[0].k.device).requires_grad_()
            for a, b in sizes
        ]
        optimiser = torch.optim.Adam(weights, rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        kernel = Kernel((weights[0], weights[1]), (weights[2], weights[3]))
        for step in range(steps):
            number = step % len(seen)
            rows = torch.randint(seen[number].k.shape[1], (256,), generator=noise)
            optimiser.zero_grad()
            miss(kernel, seen[number], lost[number], rows).backward()
            optimiser.step()
            schedule.step()
        tables |= {f"{layer}.{name}": weight.detach().half() for name, weight in zip(NAMES, weights, strict=True)}
    write(path, shape, tables)
    return replace(knob, kernel=str(path))


def dropped(knob: Less, seen: "Seen") -> "Tensor":
    """[G, T, T]: whether the query of a row finds the key of a column gone, where the knob decides."""
    import torch

    groups, tokens, dim = seen.k.shape
    shape = KVShape(
        batch=1, layers=1, query_heads=seen.q.shape[0], key_heads=groups, head_dim=dim, capacity=tokens,
        dtype=seen.k.dtype, device=seen.k.device,
    )  # fmt: skip
    tier = replace(knob, kernel="").open(shape)
    gone = torch.zeros(groups, tokens, tokens, dtype=torch.bool, device=seen.k.device)
    for length in range(1, tokens + 1):
        start, end = tier.sealed[0], knob.due(length)
        if end == start:
            continue
        tier.observe(0, 0, seen.q[:, start:length], seen.k[:, start:length])  # pyright: ignore[reportAttributeAccessIssue]
        tier.seal(0, 0, seen.k[:, start:end], seen.v[:, start:end])
        held = tier.materialise(0)[2][0].long()
        now = torch.ones(groups, tokens, dtype=torch.bool, device=gone.device).scatter_(1, held, False)
        now[:, end:] = False
        gone[:, length:] = now[:, None]
    return gone


def miss(kernel: "Kernel", seen: "Seen", gone: "Tensor", rows: "Tensor") -> "Tensor":
    """How far attention over what is held and the state is from attention over everything, for the queries `rows`."""
    import torch

    groups, tokens, _ = seen.k.shape
    q = seen.q[:, rows].unflatten(0, (groups, -1))
    later = torch.arange(tokens, device=rows.device) > rows[:, None]
    scores = (q @ seen.k[:, None].mT).masked_fill(later, -torch.inf)
    top = scores.amax(-1, keepdim=True)
    exact, lost = (scores - top).exp(), gone[:, None, rows]
    learnt = kernel.ask(q.flatten(1, 2)).unflatten(1, q.shape[1:3]) @ kernel.tell(seen.k)[:, None].mT
    ours = torch.where(lost & ~later, learnt * (-top).exp(), exact.masked_fill(lost, 0.0))
    want = exact / exact.sum(-1, keepdim=True)
    return ((ours / ours.sum(-1, keepdim=True) - want) @ seen.v[:, None]).square().mean()
