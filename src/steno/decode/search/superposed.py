"""Superposed decoding: `k` drafts from one pass, in which the model reads all of them at once, laid over one another.

Section 3 of the paper. The next input is sum_i w_i E(x_i), the embeddings of the drafts' newest tokens weighted by the
drafts' probabilities, so that the one row of logits after it serves every draft. They are sharpened by `temperature`
and cut to the best `pool`; draft i then ranks token v by its score and

    (1 - alpha) log p(v) + alpha log p_ngram(v | draft i),

where n-grams tell the drafts' own continuations from those of the others. The best `k` of all pairs are the next
drafts. A token of which the n-grams know nothing costs `unseen` in place of the second term.

What differs from the paper: n-grams are those of the prompt, or of the ids in the .npy file `corpus`, where the paper
counts 200,000 documents.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np

from steno.core import Card, Nodes, Span

from .._ngrams import Ngrams, corpus
from .._nodes import chain_nodes
from ..base import Floats, Ground, Hypothesis, Ints, SearchKnob

CARD = Card(
    paper="Superposed Decoding: Multiple Generations from a Single Autoregressive Inference Pass",
    keeps="near",
    breaks=("decode.search", "decode.draft", "decode.accept"),
    caps=("fork", "embeds"),
)


@dataclass(frozen=True, kw_only=True)
class Superposed(SearchKnob):
    """`alpha` of 0 leaves n-grams out, and one draft then is greedy decoding."""

    card: ClassVar[Card] = CARD
    points = ({"alpha": 0.0}, {}, {"unseen": -10.0}, {"k": 1, "alpha": 0.0})

    k: Annotated[int, Span(1, 64, "drafts")] = 3
    alpha: Annotated[float, Span(0.0, 1.0)] = 0.54
    temperature: Annotated[float, Span(0.001, 10.0)] = 0.06
    pool: Annotated[int, Span(1, 1024, "tokens")] = 9
    unseen: Annotated[float, Span(-1000.0, 0.0, "nats")] = -200.0
    corpus: str = ""

    def search(self, ground: Ground) -> list[Hypothesis]:
        session, prompt = ground.open(), ground.request.prompt
        known = (corpus(self.corpus) if self.corpus else Ngrams(prompt)) if self.alpha else Ngrams(())
        drafts = [Text()]
        ended: list[Text] = []
        for _ in range(ground.limit):
            step = ground.forward(session, self._input(session.embed, prompt[-1], drafts))
            logits = step.logits[0, 0].copy()
            session.commit([[0]])
            grown = sorted(
                (text for draft in drafts for text in self._extend(ground, draft, logits, known)),
                key=lambda text: -text.score,
            )
            best = grown[: 2 * self.k]
            ended += [text for text in best[: self.k] if text.tokens[-1] in ground.ends]
            drafts = [text for text in best if text.tokens[-1] not in ground.ends][: self.k]
            if len(ended) >= self.k or not drafts:
                drafts = []
                break
        found = sorted(ended + drafts, key=lambda text: -text.score / len(text.tokens))[: self.k]
        return [Hypothesis(text.tokens, text.score / len(text.tokens)) for text in found]

    def _input(self, embed: "Embed", pending: int, drafts: "list[Text]") -> Nodes:
        """The pending token, or the drafts' newest ones laid over one another."""
        if not drafts[0].tokens:
            return chain_nodes([[pending]])
        weights = np.exp([draft.score - drafts[0].score for draft in drafts])
        weights /= weights.sum()
        states = embed(np.array([draft.tokens[-1] for draft in drafts], np.int32))
        mixed = (weights[:, None] * states).sum(0).astype(np.float32)
        return replace(chain_nodes([[0]]), embeds=mixed[None, None])

    def _extend(self, ground: Ground, draft: "Text", logits: Floats, known: Ngrams) -> "list[Text]":
        """The draft with each token of the pool behind it."""
        past = [*ground.request.prompt, *draft.tokens]
        law = ground.law(logits, past) / self.temperature
        pool = [t for t in np.argsort(-law, kind="stable")[: self.pool].tolist() if law[t] > -np.inf]
        inner = law[pool] - law[pool].max()
        inner -= np.log(np.exp(inner).sum())
        support = known.law(past, pool) if self.alpha else {}
        out: list[Text] = []
        for token, log in zip(pool, inner.tolist(), strict=True):
            score = draft.score + (1 - self.alpha) * log
            if self.alpha:
                score += self.alpha * math.log(support[token]) if support[token] else self.unseen
            out.append(Text((*draft.tokens, token), score))
        return out


@dataclass(frozen=True, slots=True)
class Text:
    """A draft on its way. Drafts are kept best first."""

    tokens: tuple[int, ...] = ()
    score: float = 0.0


Embed = Callable[[Ints], Floats]
