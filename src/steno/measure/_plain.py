"""Plain decoding, written again as plainly as it can be: the kit's reference, which shares no code with the loop.

One token per row and forward, nothing drafted, nothing cropped. Shapers are called on the whole past, and the
acceptor is asked about an empty draft: that is its rule for choosing a token.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

from steno.core import PAD, ROOT, Key, Model, Nodes, Plan, Session
from steno.decode.base import AcceptorKnob, Draft, Request, ShaperKnob
from steno.decode.loop import acceptor

from .bytes import cache_form

Floats = npt.NDArray[np.float32]
Past = tuple[int, ...]


class Lone:
    """`View` of the pending token alone, over shaped logits [V]; `nodes` adds those of draft tokens."""

    def __init__(self, logits: Floats, request: Request, position: int, nodes: Sequence[Floats] = ()) -> None:
        self._rows = [logits, *nodes]
        self._request = request
        self._position = position
        self.depth: Sequence[int] = [0] * len(self._rows)

    def best(self, node: int) -> int:
        return int(self._rows[node + 1].argmax())

    def logits(self, node: int) -> Floats:
        return self._rows[node + 1]

    def key(self, node: int, purpose: str) -> Key:
        return Key(self._request.seed, self._request.number, self._position + self.depth[node + 1], purpose)


class Rule:
    """How a plan turns raw logits into a token."""

    def __init__(self, plan: Plan) -> None:
        self.shapers = cast(tuple[ShaperKnob, ...], plan.find("decode.shape"))
        self.acceptor: AcceptorKnob = acceptor(plan)

    def shape(self, logits: Floats, past: Sequence[int]) -> Floats:
        """Shaped logits [V] after `past`."""
        for shaper in self.shapers:
            logits = shaper.shape(logits, list(past))
        return logits

    def choose(self, logits: Floats, past: Sequence[int], request: Request) -> int:
        """The token after `past`."""
        view = Lone(self.shape(logits, past), request, len(past))
        return self.acceptor.verify(Draft(), view)[1]


def plain(model: Model, plan: Plan, requests: Sequence[Request], capacity: int) -> list[Past]:
    """What plain decoding makes of each request: one row, one token at a time, past every end but `max_tokens`."""
    rule = Rule(plan)
    out: list[Past] = []
    for request in requests:
        ids = list(request.prompt)
        session = model.open(1, capacity, cache_form(plan))
        session.prefill([ids[:-1]])
        while len(ids) < min(len(request.prompt) + request.max_tokens, capacity + 1):
            logits = single(session, [ids[-1]])[0]
            session.commit([[0]])
            ids.append(rule.choose(logits, ids, request))
        out.append(tuple(ids[len(request.prompt) :]))
    return out


def forced(
    model: Model, plan: Plan, texts: Sequence[Sequence[int]], starts: Sequence[int], capacity: int
) -> dict[Past, Floats]:
    """Raw logits [V] after every past texts[b][:n], n in [starts[b], len): token by token, all rows in one session."""
    session = model.open(len(texts), capacity, cache_form(plan))
    session.prefill([text[: start - 1] for text, start in zip(texts, starts, strict=True)])
    found: dict[Past, Floats] = {}
    at = list(starts)
    while any(n < len(text) and n <= capacity for n, text in zip(at, texts, strict=True)):
        live = [n < len(text) and n <= capacity for n, text in zip(at, texts, strict=True)]
        logits = single(session, [text[n - 1] if on else None for text, n, on in zip(texts, at, live, strict=True)])
        for b, on in enumerate(live):
            if on:
                found[tuple(texts[b][: at[b]])] = logits[b]
                at[b] += 1
        session.commit([[0] if on else [] for on in live])
    return found


def single(session: Session, tokens: Sequence[int | None]) -> Floats:
    """Logits [B, V] of one node per row; None leaves a row out."""
    nodes = Nodes(
        tokens=np.array([[0 if t is None else t] for t in tokens], np.int32),
        parents=np.array([[PAD if t is None else ROOT] for t in tokens], np.int32),
    )
    return np.array(session.forward(nodes).logits[:, 0])


def cut(tokens: Sequence[int], ends: Iterable[int], most: int) -> Past:
    """What a text keeps of `tokens`: up to its first end token, that one included, and `most` at the most.

    >>> cut([4, 5, 6, 5], {5}, 9), cut([4, 5, 6], set(), 2)
    ((4, 5), (4, 5))
    """
    ends = set(ends)
    for count, token in enumerate(tokens[:most], 1):
        if token in ends:
            return tuple(tokens[:count])
    return tuple(tokens[:most])


def without(plan: Plan, prefix: str) -> Plan:
    """The plan less the knobs at or below `prefix`."""
    gone = plan.find(prefix)
    return Plan(tuple(k for k in plan.knobs if k not in gone))


Table = Mapping[Past, Floats]
