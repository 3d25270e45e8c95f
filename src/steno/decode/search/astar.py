"""A*-decoding: partial texts are states, a process scorer says what they may become, and the best is continued.

A state is a text of whole steps (lines, or `step_tokens` tokens). The state with the least cost f = g + h is popped,
`k` continuations to the end of the next step are sampled from the model and scored, and what is new is pushed. It ends
with `goals` whole texts or after `budget` expansions; texts are ranked by their own score. With scores r in [0, 1]

    g = sum over steps of (1 - r),   h = `heuristic` (1 - last r) times the steps that may be left,

where a text may have as many steps left as its own pace gives for the tokens that are left. A `heuristic` of 0 is
uniform-cost search.

What differs from the paper: g and h are a reconstruction, as are `budget` and `goals`; the scorer is a field. Samples
are keyed by state and number, so equal requests find equal texts. Where the budget ends first, the best state is
continued greedily.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Annotated, ClassVar

import numpy as np

from steno.core import Card, Key, Span

from .._law import Doubles
from .._noise import draw
from ..base import Ground, Hypothesis, ScorerKnob, SearchKnob
from ._parts import Text, Walker, scorer

CARD = Card(
    paper="A*-Decoding: Token-Efficient Inference Scaling",
    keeps="near",
    breaks=("decode.search", "decode.draft", "decode.accept"),
    caps=("fork", "crop"),
)


@dataclass(frozen=True, kw_only=True)
class Astar(SearchKnob):
    """A shaper such as the temperature shapes what is sampled."""

    card: ClassVar[Card] = CARD
    points = (
        {"reward": {"name": "decode.score.syntax"}},
        {"reward": {"name": "decode.score.syntax"}, "heuristic": 0.0},
    )

    reward: ScorerKnob = scorer("likelihood")
    k: Annotated[int, Span(1, 64, "samples")] = 3
    budget: Annotated[int, Span(1, 4096, "expansions")] = 32
    goals: Annotated[int, Span(1, 64, "texts")] = 1
    step_tokens: Annotated[int, Span(1, 1024, "tokens")] = 24
    heuristic: Annotated[float, Span(0.0, 100.0)] = 1.0

    def search(self, ground: Ground) -> list[Hypothesis]:
        walker = Walker(ground)
        heap: list[tuple[float, int, State]] = [(0.0, 0, State(Text()))]
        known: set[tuple[int, ...]] = {()}
        goals: list[tuple[float, Text]] = []
        serial = spent = 0
        while heap and len(goals) < self.goals and (spent < self.budget or not goals):
            _, mark, state = heappop(heap)
            if state.text.ended(ground):
                goals.append((state.last, state.text))
            elif spent == self.budget:
                text = _finish(walker, ground, state.text)
                goals.append((self.reward.score(text.candidate(ground)), text))
            else:
                spent += 1
                for text in self._continue(walker, ground, state.text, mark):
                    if text.tokens not in known:
                        known.add(text.tokens)
                        serial += 1
                        worth = self.reward.score(text.candidate(ground))
                        grown = State(text, state.cost + 1 - worth, worth, state.steps + 1)
                        heappush(heap, (self._estimate(grown, ground), serial, grown))
        ranked = sorted(goals, key=lambda goal: -goal[0])
        return [Hypothesis(text.tokens, worth) for worth, text in ranked]

    def _estimate(self, state: "State", ground: Ground) -> float:
        """The cost of a whole text by way of the state."""
        if state.text.ended(ground):
            return state.cost
        left = (ground.limit - len(state.text.tokens)) * state.steps / len(state.text.tokens)
        return state.cost + self.heuristic * (1 - state.last) * left

    def _continue(self, walker: Walker, ground: Ground, text: Text, mark: int) -> list[Text]:
        """Samples of one step more, side by side."""
        laws: list[Doubles | None] = [walker.law(text.tokens)] * self.k
        session = walker.session.fork([0] * self.k)
        texts = [text] * self.k
        held: list[Sequence[int]] = [[*ground.request.prompt, *text.tokens]] * self.k
        while any(law is not None for law in laws):
            for row, law in enumerate(laws):
                if law is not None:
                    token = draw(_key(ground, texts[row], mark, row), law.astype(np.float32))
                    texts[row] = texts[row].grown(token, float(law[token]))
                    if self._ends_step(ground, texts[row], len(text.tokens)):
                        laws[row] = None
                    else:
                        held[row] = [*ground.request.prompt, *texts[row].tokens]
            for row, logits in enumerate(ground.reach(session, held)):
                if logits is not None:
                    laws[row] = ground.law(logits, held[row])
        return texts

    def _ends_step(self, ground: Ground, text: Text, start: int) -> bool:
        if text.ended(ground) or len(text.tokens) == start + self.step_tokens:
            return True
        return ground.text is not None and "\n" in ground.text(text.tokens[-1:])


@dataclass(frozen=True, slots=True)
class State:
    """A text, the cost of its steps, the last one's score, and how many they are."""

    text: Text
    cost: float = 0.0
    last: float = 1.0
    steps: int = 0


def _key(ground: Ground, text: Text, mark: int, row: int) -> Key:
    request = ground.request
    return Key(request.seed, request.number, len(request.prompt) + len(text.tokens), f"astar {mark} {row}")


def _finish(walker: Walker, ground: Ground, text: Text) -> Text:
    while not text.ended(ground):
        law = walker.law(text.tokens)
        text = text.grown(int(law.argmax()), float(law.max()))
    return text
