"""Entropy-adaptive decoding: a small model writes where it is sure, the large one where the text is uncertain.

Section 3 of the paper: the entropy of the next token's law, averaged over the last `window` tokens by whichever model
wrote them, decides who writes next: the large model above `threshold` nats, the small one below, with at least `least`
tokens between two changes. Unlike drafting, nothing is checked: what the small model writes stands.

What differs from the paper: a model that comes back catches up with what the other wrote in one forward, because both
keep their own KV. Both choose greedily, from the law as shaped and constrained. The text begins with the large model.
Without `small`, the small model is the large one, and switching changes nothing.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, ClassVar

import numpy as np

from steno.core import Card, Model, Session, Span
from steno.core.errors import KnobError

from .._law import Doubles
from ..base import Ground, Hypothesis, SearchKnob

CARD = Card(
    paper="Entropy Adaptive Decoding: Dynamic Model Switching for Efficient Inference",
    keeps="near",
    breaks=("decode.search", "decode.draft", "decode.accept"),
    caps=("fork",),
)


@dataclass(frozen=True, kw_only=True)
class EntropyAdaptive(SearchKnob):
    """`small` is a model with the same vocabulary. A `threshold` of 0 is greedy decoding by the large model."""

    card: ClassVar[Card] = CARD
    points = ({"threshold": 0.0}, {}, {"threshold": 100.0})

    small: str = ""
    threshold: Annotated[float, Span(0.0, 100.0, "nats")] = 1.0
    window: Annotated[int, Span(1, 1024, "tokens")] = 5
    least: Annotated[int, Span(1, 1024, "tokens")] = 10

    def search(self, ground: Ground) -> list[Hypothesis]:
        prompt = ground.request.prompt
        large = ground.open()
        small = self._second(large, prompt, ground.limit)
        recent: deque[float] = deque(maxlen=self.window)
        writing, since = large, 0
        text: list[int] = []
        total = 0.0
        while not text or (text[-1] not in ground.ends and len(text) < ground.limit):
            past = [*prompt, *text]
            logits = ground.reach(writing, [past])[0]
            assert logits is not None, "whoever writes lacks the last token"
            law = ground.law(logits, past)
            token = int(law.argmax())
            text.append(token)
            total += float(law[token])
            recent.append(entropy(law))
            since += 1
            wanted = large if sum(recent) / len(recent) >= self.threshold else small
            if wanted is not writing and since >= self.least:
                writing, since = wanted, 0
        return [Hypothesis(tuple(text), total / len(text))]

    def _second(self, large: Session, prompt: Sequence[int], limit: int) -> Session:
        """A session of the small model at the prompt. Raises KnobError where the two models do not fit."""
        if not self.small:
            return large.fork([0])
        model = _load(self.small)
        if model.vocab != large.vocab:
            raise KnobError(
                f"{self.name}: small must have the large model's vocabulary of {large.vocab}; {self.small} has "
                f"{model.vocab}. Choose a model of the same family."
            )
        capacity = len(prompt) + limit
        if capacity > model.context:
            raise KnobError(
                f"{self.name}: small must hold prompt and text, {capacity} tokens; {self.small} holds {model.context}. "
                "Lower --max-tokens, or choose another model."
            )
        session = model.open(1, capacity)
        if len(prompt) > 1:
            session.prefill([prompt[:-1]])
        return session


def entropy(law: Doubles) -> float:
    """Nats of log-probabilities [V].

    >>> round(entropy(np.log(np.array([0.5, 0.5]))), 4)
    0.6931
    """
    mass = np.exp(law)
    return -float((mass * np.where(mass > 0.0, law, 0.0)).sum()) + 0.0


@lru_cache(maxsize=2)
def _load(source: str) -> Model:
    from steno.models import ModelSpec, load

    return load(ModelSpec(source=source))
