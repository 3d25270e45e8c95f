"""What searches share: scorers in their fields, and a row that goes wherever they want to look."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from steno.core import make_knob

from .._law import Doubles
from .._nodes import common
from ..base import Candidate, Ground, ScorerKnob


def scorer(name: str) -> ScorerKnob:
    """The default of a field that holds a scorer, by name: a method never imports another."""
    return field(default_factory=lambda: cast(ScorerKnob, make_knob(f"decode.score.{name}", {})))


@dataclass(frozen=True, slots=True)
class Text:
    """A text on its way, and the log-probability of each of its tokens."""

    tokens: tuple[int, ...] = ()
    logs: tuple[float, ...] = ()

    def grown(self, token: int, log: float) -> "Text":
        return Text((*self.tokens, token), (*self.logs, log))

    def ended(self, ground: Ground) -> bool:
        """Whether nothing follows."""
        return bool(self.tokens) and (self.tokens[-1] in ground.ends or len(self.tokens) == ground.limit)

    def candidate(self, ground: Ground) -> Candidate:
        """The text as a scorer sees it."""
        return Candidate(
            prompt=ground.request.prompt,
            tokens=self.tokens,
            logs=self.logs,
            whole=self.ended(ground),
            ends=ground.ends,
            text=ground.text,
        )


class Walker:
    """One row of a session that goes back to what it shares with the text that is asked about, and on from there."""

    def __init__(self, ground: Ground) -> None:
        self.session = ground.open()
        self._ground = ground
        self._held: tuple[int, ...] = ()

    def law(self, text: Sequence[int]) -> Doubles:
        """The shaped log-probabilities [V] of what follows `text`."""
        size = len(self._ground.request.prompt)
        # The last token is always run: its logits are what is asked for.
        kept = size + min(common(self._held, text), len(text) - 1)
        if kept < self.session.lengths[0]:
            self.session.crop([kept])
        (law,) = self._ground.advance(self.session, [text])
        self._held = tuple(text)
        return law


def best(law: Doubles, count: int) -> list[int]:
    """The `count` most probable tokens, best first, of those that are possible; of equals the lower id first."""
    return [t for t in np.argsort(-law, kind="stable")[:count].tolist() if law[t] > -np.inf]
