"""Self-infilling: where the model is unsure it writes what comes later first, and then fills in what lies between.

Section 3 of the paper, for models trained to fill in the middle; their sentinel tokens are fields. Text is decoded left
to right to the first token whose probability is below `tau`. There decoding is interrupted:

    <prefix> prompt and text <suffix> `cue` ...   the model writes a suffix, until it says <middle>,
    ... <middle> ...                              and then the middle, until it says that it is done.

In each of `loops` turns the suffix is written anew, left to right behind the middle, and the middle is filled in anew
between text and suffix. What comes out is text, middle and suffix, decoded on, left to right, to its end.

What differs from the paper: decoding is greedy; the values of `tau`, `loops` and `suffix_tokens` are ours. A hole is
filled with what fits the session, whose context holds the sentinels, too. Without sentinels it is greedy decoding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from steno.core import Card, Span

from ..base import Ground, Hypothesis, SearchKnob

CARD = Card(
    paper="Self-Infilling Code Generation",
    keeps="near",
    breaks=("decode.search", "decode.draft", "decode.accept"),
    caps=("fork",),
)


@dataclass(frozen=True, kw_only=True)
class SelfInfilling(SearchKnob):
    """A sentinel of -1 is one that the model lacks; `tau` of 0 never interrupts."""

    card: ClassVar[Card] = CARD
    points = ()

    prefix: Annotated[int, Span(-1, 1 << 24, "token")] = -1
    suffix: Annotated[int, Span(-1, 1 << 24, "token")] = -1
    middle: Annotated[int, Span(-1, 1 << 24, "token")] = -1
    cue: Annotated[tuple[int, ...], Span(0, 1 << 24, "token")] = ()
    tau: Annotated[float, Span(0.0, 1.0)] = 0.3
    loops: Annotated[int, Span(0, 16, "turns")] = 1
    suffix_tokens: Annotated[int, Span(1, 4096, "tokens")] = 64

    def search(self, ground: Ground) -> list[Hypothesis]:
        able = min(self.prefix, self.suffix, self.middle) >= 0
        text = self._write(ground, [], ground.limit, tau=self.tau if able else 0.0)
        # A token of the middle at least has to fit beside the cue.
        if len(text) + len(self.cue) < ground.limit and not _ended(text, ground):
            text = self._infilled(ground, text)
        if not _ended(text, ground):
            text += self._write(ground, text, ground.limit - len(text))
        return [Hypothesis(tuple(text), 0.0)]

    def _infilled(self, ground: Ground, text: list[int]) -> list[int]:
        """The text with middle and suffix behind it; neither holds an end."""
        left = ground.limit - len(text)
        most = min(self.suffix_tokens, left - 1)
        cue = list(self.cue)
        tail = cue + self._fill(ground, text, cue, most - len(cue), to=self.middle)
        hole = self._fill(ground, text, [*tail, self.middle], left - len(tail))
        for _ in range(self.loops):
            room = min(self.suffix_tokens, left - len(hole))
            tail = [token for token in self._write(ground, [*text, *hole], room) if token not in ground.ends]
            hole = self._fill(ground, text, [*tail, self.middle], left - len(tail))
        return [*text, *hole, *tail]

    def _write(self, ground: Ground, text: Sequence[int], most: int, tau: float = 0.0) -> list[int]:
        """At most `most` tokens left to right behind prompt and text, to an end or to where the model is unsure."""
        context = [*ground.request.prompt, *text]
        return self._decode(ground, context, [*context], most, tau=tau, to=-1)

    def _fill(self, ground: Ground, text: Sequence[int], behind: Sequence[int], most: int, to: int = -1) -> list[int]:
        """At most `most` tokens of what stands behind <suffix> and `behind`, less the end or sentinel they stop at."""
        prompt = ground.request.prompt
        context = [self.prefix, *prompt, *text, self.suffix, *behind]
        out = self._decode(ground, context, [*prompt, *text], most, tau=0.0, to=to)
        return out[:-1] if _ended(out, ground) else out

    def _decode(
        self, ground: Ground, context: list[int], past: list[int], most: int, *, tau: float, to: int
    ) -> list[int]:
        """Greedily on from `context`, shaped as what follows `past`. No sentinel comes but `to`, which ends it."""
        session = ground.open(())
        if len(context) > session.caps.context:
            return []
        session.prefill([context[:-1]])
        barred = [i for i in (self.prefix, self.suffix, self.middle) if i != to and 0 <= i < session.vocab]
        out: list[int] = []
        while len(out) < most and session.room()[0] and not _ended(out, ground):
            (logits,) = ground.reach(session, [[*context, *out]])
            assert logits is not None
            law = ground.law(logits, [*past, *out])
            law[barred] = -np.inf
            token = int(law.argmax())
            if token == to or np.exp(law[token]) < tau:
                break
            out.append(token)
        return out


def _ended(text: Sequence[int], ground: Ground) -> bool:
    return bool(text) and text[-1] in ground.ends
