"""Paired fidelity: how far a candidate's predictions lie from the baseline's, token by token on the same ids.

Both sides are teacher-forced in lockstep the way decoding would go: in chains within `Session.room`, so a compressed
cache is in the state that decoding would meet. Logits become log-probabilities in float64.

KL is exact where the whole vocabulary is compared. With `top` = K it is exact on the union of both sides' K best ids,
and everything else is lumped into one bucket per side. By the data-processing inequality that is a *lower bound*: the
record says which of the two it is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from steno.core import Model, Nodes, Plan, Session
from steno.core.errors import ModelError, PromptError

from ._stats import bootstrap_mean, paired_ratio
from .base import Fidelity
from .bytes import cache_form

if TYPE_CHECKING:
    from steno.tokens import Tokenizer

Doubles = npt.NDArray[np.float64]

CHUNK = 64
"""Most positions per forward."""


@dataclass(frozen=True)
class Side:
    """A model and the plan it runs under; only the plan's cache form enters teacher forcing."""

    model: Model
    plan: Plan = Plan()


@dataclass(frozen=True)
class Paired:
    """Both sides on one text, per predicted position [T - 1]."""

    kl: Doubles
    same: npt.NDArray[np.bool_]
    nats_base: Doubles
    nats_plan: Doubles


def fidelity(
    base: Side,
    plan: Side,
    texts: Sequence[Sequence[int]],
    *,
    top: int = 0,
    tokenizer: "Tokenizer | None" = None,
    continue_tokens: int = 0,
    seed: int = 0,
) -> Fidelity:
    """Compare two sides on `texts` (ids, two or more each).

    top              0: KL over the whole vocabulary; K: the lumped lower bound
    tokenizer        counts the texts' bytes for bits per byte; without it bits are per token
    continue_tokens  also compare greedy continuations of every text, over so many tokens
    Raises PromptError for a text without a prediction, ModelError for unequal vocabularies and for logits that are NaN.
    """
    short = [i for i, text in enumerate(texts) if len(text) < 2]
    if short or not texts:
        where = f"text {short[0] + 1} has {len(texts[short[0]])}" if short else "none came"
        raise PromptError(f"fidelity needs texts of at least 2 tokens, {where}. Give longer text.")
    if base.model.vocab != plan.model.vocab:
        raise ModelError(
            f"fidelity compares models of one vocabulary: {base.model.name} has {base.model.vocab} ids, "
            f"{plan.model.name} has {plan.model.vocab}."
        )
    runs = [paired(base, plan, text, top) for text in texts]
    units = [_units(text, tokenizer) for text in texts]
    kl = np.concatenate([run.kl for run in runs])
    low, high = bootstrap_mean([run.kl for run in runs], seed)
    bits_base, _ = paired_ratio([float(run.nats_base.sum()) for run in runs], units)
    bits_plan, _ = paired_ratio([float(run.nats_plan.sum()) for run in runs], units)
    delta, error = paired_ratio([float((run.nats_plan - run.nats_base).sum()) for run in runs], units)
    p50, p90, p99 = (float(q) for q in np.quantile(kl, (0.5, 0.9, 0.99), method="higher"))
    return Fidelity(
        texts=len(texts),
        tokens=len(kl),
        exact=top == 0,
        top=top,
        kl_mean=float(kl.mean()),
        kl_low=low,
        kl_high=high,
        kl_p50=p50,
        kl_p90=p90,
        kl_p99=p99,
        kl_max=float(kl.max()),
        top1=float(np.concatenate([run.same for run in runs]).mean()),
        unit="byte" if tokenizer else "token",
        bits_base=bits_base / math.log(2),
        bits_plan=bits_plan / math.log(2),
        bits_delta=delta / math.log(2),
        bits_error=None if error is None else error / math.log(2),
        divergence=_continuations(base, plan, texts, continue_tokens) if continue_tokens else (),
        continued=continue_tokens,
    )


def paired(base: Side, plan: Side, text: Sequence[int], top: int = 0) -> Paired:
    """Teacher-force both sides over `text` in lockstep."""
    one, two = _open(base, len(text)), _open(plan, len(text))
    width = min(CHUNK, one.caps.max_width, two.caps.max_width)
    parts: list[Paired] = []
    at = 0
    while at < len(text) - 1:
        count = min(width, one.room()[0], two.room()[0], len(text) - 1 - at)
        chunk = np.asarray(text[at : at + count + 1], np.int64)
        p = _step(one, chunk[:-1], base, at)
        q = _step(two, chunk[:-1], plan, at)
        rows = np.arange(count)
        parts.append(
            Paired(
                kl=lumped_kl(p, q, top) if top else exact_kl(p, q),
                same=p.argmax(-1) == q.argmax(-1),
                nats_base=-p[rows, chunk[1:]],
                nats_plan=-q[rows, chunk[1:]],
            )
        )
        at += count
    return Paired(
        kl=np.concatenate([part.kl for part in parts]),
        same=np.concatenate([part.same for part in parts]),
        nats_base=np.concatenate([part.nats_base for part in parts]),
        nats_plan=np.concatenate([part.nats_plan for part in parts]),
    )


def log_softmax(logits: npt.ArrayLike) -> Doubles:
    """Log-probabilities [..., V] in float64; -inf stays -inf."""
    x = np.asarray(logits, np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def exact_kl(p: Doubles, q: Doubles) -> Doubles:
    """KL(p || q) in nats [...] of log-probabilities [..., V]; inf where q forbids what p allows."""
    weight = np.exp(p)
    with np.errstate(invalid="ignore"):
        terms = np.where(weight > 0, weight * (p - q), 0.0)
    # Rounding may leave a sum of zeros at -1e-17.
    return np.maximum(terms.sum(axis=-1), 0.0)


def lumped_kl(p: Doubles, q: Doubles, top: int) -> Doubles:
    """A lower bound of `exact_kl`: exact on the union of both `top` best, the rest being one bucket per side."""
    width = p.shape[-1]
    if top >= width:
        return exact_kl(p, q)
    kept = np.zeros(p.shape, bool)
    for side in (p, q):
        np.put_along_axis(kept, np.argpartition(-side, top - 1, axis=-1)[..., :top], True, axis=-1)
    return exact_kl(_lump(p, kept), _lump(q, kept))


def _lump(p: Doubles, kept: npt.NDArray[np.bool_]) -> Doubles:
    tail = np.where(kept, 0.0, np.exp(p)).sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        return np.concatenate([np.where(kept, p, -np.inf), np.log(tail)], axis=-1)


def divergence(one: Sequence[int], two: Sequence[int]) -> int | None:
    """First position at which two id sequences differ, the shorter length where one begins the other, None if equal.

    >>> divergence([1, 2, 3], [1, 2, 4]), divergence([1], [1, 2]), divergence([5], [5])
    (2, 1, None)
    """
    for at, (a, b) in enumerate(zip(one, two, strict=False)):
        if a != b:
            return at
    return None if len(one) == len(two) else min(len(one), len(two))


def _open(side: Side, length: int) -> Session:
    if length > side.model.context:
        raise PromptError(f"a text of {length} tokens is longer than the context of {side.model.context}. Cut it.")
    return side.model.open(1, length, cache_form(side.plan))


def _step(session: Session, ids: npt.NDArray[np.int64], side: Side, at: int) -> Doubles:
    count = len(ids)
    nodes = Nodes(tokens=ids.astype(np.int32)[None], parents=np.arange(-1, count - 1, dtype=np.int32)[None])
    logits = np.array(session.forward(nodes).logits[0, :count])
    session.commit([list(range(count))])
    if np.isnan(logits).any():
        row = int(np.isnan(logits).any(axis=-1).argmax())
        raise ModelError(f"{side.model.name} gives NaN logits after token {at + row + 1}. Its weights are damaged.")
    return log_softmax(logits)


def _units(text: Sequence[int], tokenizer: "Tokenizer | None") -> float:
    """Bytes (or tokens) that the predictions of a text stand for: all but its first token."""
    if tokenizer is None:
        return len(text) - 1
    whole, first = (len(tokenizer.decode(ids).encode("utf-8")) for ids in (list(text), list(text[:1])))
    return max(1, whole - first)


def _continuations(base: Side, plan: Side, texts: Sequence[Sequence[int]], count: int) -> tuple[int | None, ...]:
    from steno.decode import generate
    from steno.decode.base import Request

    requests = [Request(number=i, prompt=tuple(text), max_tokens=count) for i, text in enumerate(texts)]
    one, two = (generate(side.model, requests, side.plan, batch=1) for side in (base, plan))
    return tuple(divergence(a.tokens, b.tokens) for a, b in zip(one, two, strict=True))
