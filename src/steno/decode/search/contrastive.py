"""Contrastive search: of the likely next tokens, the one whose hidden state is least like those before it.

The paper's objective: of the `k` most probable tokens v the next one maximises

    (1 - alpha) p(v | x) - alpha max_j cos(h_v, h_j),

where h_j are the last layer's hidden states of prompt and text and h_v is that of v after them. The candidates run as
leaves beside one another, and the winner's leaf is committed with the logits that it has already: one forward a token.

What differs from the paper: states are those before the final norm, which backends agree on. Where the context is full
no candidate can run, so the last token there is the most probable one.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from steno.core import Card, Session, Span, Want

from .._law import Doubles
from .._nodes import chain_nodes, leaf_nodes
from ..base import Floats, Ground, Hypothesis, SearchKnob

CARD = Card(
    paper="Contrastive Search Is What You Need For Neural Text Generation",
    keeps="near",
    breaks=("decode.search", "decode.draft", "decode.accept"),
    caps=("fork", "tree", "hidden"),
)


@dataclass(frozen=True, kw_only=True)
class Contrastive(SearchKnob):
    """`alpha` of 0, or one candidate, is greedy decoding."""

    card: ClassVar[Card] = CARD
    points = ({"alpha": 0.0}, {"alpha": 0.3}, {"alpha": 0.6})

    k: Annotated[int, Span(1, 64, "tokens")] = 4
    alpha: Annotated[float, Span(0.0, 1.0)] = 0.6

    def search(self, ground: Ground) -> list[Hypothesis]:
        session = ground.open(())
        last = session.caps.num_layers
        logits, bank = _read(ground, session, last)
        text: list[int] = []
        total = 0.0
        while len(text) < ground.limit:
            law = ground.law(logits, [*ground.request.prompt, *text])
            best = [t for t in np.argsort(-law, kind="stable")[: self.k].tolist() if law[t] > -np.inf]
            if not session.room()[0]:
                text.append(best[0])
                total += float(law[best[0]])
                break
            step = ground.forward(session, leaf_nodes([best]), Want(hidden=(last,)))
            states = _unit(step.hidden(last)[0, : len(best)])
            alike = (states @ bank[: session.lengths[0]].T).max(1)
            won = int(((1 - self.alpha) * np.exp(law[best]) - self.alpha * alike).argmax())
            text.append(best[won])
            total += float(law[best[won]])
            if best[won] in ground.ends:
                break
            bank[session.lengths[0]] = states[won]
            logits = step.logits[0, won].copy()
            session.commit([[won]])
        return [Hypothesis(tuple(text), total / len(text))]


def _read(ground: Ground, session: Session, last: int) -> tuple[Floats, Doubles]:
    """Commit the prompt: (logits [V] after it, a bank [prompt and text, M] of unit states, the prompt's filled in)."""
    prompt = ground.request.prompt
    bank: Doubles | None = None
    while True:
        done = session.lengths[0]
        chunk = prompt[done : done + min(session.caps.max_width, session.room()[0])]
        step = ground.forward(session, chain_nodes([chunk]), Want(logits=True, hidden=(last,)))
        states = _unit(step.hidden(last)[0, : len(chunk)])
        if bank is None:
            bank = np.zeros((len(prompt) + ground.limit, states.shape[1]))
        bank[done : done + len(chunk)] = states
        if done + len(chunk) == len(prompt):
            logits = step.logits[0, len(chunk) - 1].copy()
            session.commit([list(range(len(chunk)))])
            return logits, bank
        session.commit([list(range(len(chunk)))])


def _unit(states: Floats) -> Doubles:
    """Rows of length 1, so that their products are cosines."""
    rows = states.astype(np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
