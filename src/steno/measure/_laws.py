"""Laws for the checks of law: the model's own, at a few prefixes, cut to a size that thousands of seeds can fill."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steno.core import ROOT
from steno.decode.base import Draft

from ._drafts import sample_laws
from ._lab import Floats, Lab, chain, forest
from ._plain import Rule
from ._stats import samples_for

Doubles = npt.NDArray[np.float64]

WIDTH = 24
"""Ids the law is cut to."""

ALARM = 5e-8
CELLS = 8
LIMIT = 0.03
BIAS = 0.05
"""Total variation of a bias that is found almost surely: five standard deviations above LIMIT."""

DRAWS = samples_for(CELLS, LIMIT, ALARM)
"""Seeds per case: enough to bring the allowed variation down to LIMIT."""


@dataclass(frozen=True)
class Case:
    """A prefix's law and those below it by first token, and how a draft is made for a seed."""

    name: str
    draft: Callable[[int], Draft]
    root: Floats
    below: dict[int, Floats]

    def rows(self, draft: Draft) -> list[Floats]:
        return [self.below[t] if up == ROOT else self.root for t, up in zip(draft.tokens, draft.parents, strict=True)]


def cases(lab: Lab, rule: Rule) -> Iterator[Case]:
    """Drafts of every kind below two prompts."""
    for number, prompt in enumerate(lab.prompts[:2]):
        root, below = laws(lab, rule, prompt)
        best = [int(i) for i in np.argsort(-root, kind="stable")]
        name = f"prompt {number}"
        if number == 0:
            yield Case(f"{name}, no draft", lambda seed: Draft(), root, below)
            one = Draft.chain((best[1], best[0]))
            yield Case(f"{name}, a chain", lambda seed, one=one: one, root, below)
            yield Case(f"{name}, sampled chain", _sampled(1), root, below)
        else:
            fan = Draft((best[2], best[0], best[1], best[3]), (ROOT, ROOT, ROOT, 1))
            yield Case(f"{name}, siblings", lambda seed, fan=fan: fan, root, below)
            yield Case(f"{name}, sampled siblings", _sampled(2), root, below)


def _sampled(fan: int) -> Callable[[int], Draft]:
    """`fan` children, each drawn anew for every seed from a law of its own, which is the same for all seeds."""
    rng = np.random.default_rng(7)
    laws = sample_laws(rng, fan, WIDTH)
    exact = laws.astype(np.float64)
    drawn = [rng.choice(WIDTH, DRAWS, p=row / row.sum()).tolist() for row in exact]

    def draft(seed: int) -> Draft:
        return Draft(tuple([column[seed] for column in drawn]), (ROOT,) * fan, (), laws, "sampled")

    return draft


def laws(lab: Lab, rule: Rule, prompt: tuple[int, ...]) -> tuple[Floats, dict[int, Floats]]:
    """Shaped logits after a prompt and after each of its next ids, cut to WIDTH ids: its best, and one for the rest."""
    session = lab.open()
    session.prefill([prompt[:-1]])
    raw = np.array(session.forward(forest([chain(prompt[-1:])])).logits[0, 0])
    session.commit([[0]])
    root = _alive(rule.shape(raw, prompt), raw)
    kept = np.argsort(-root, kind="stable")[:WIDTH].tolist()
    below: dict[int, Floats] = {}
    for i in range(WIDTH):
        token = kept[i % len(kept)]
        after = np.array(session.forward(forest([chain([token])])).logits[0, 0]) if i < 6 else raw
        below[i] = _cut(_alive(rule.shape(after, (*prompt, token)), after))
    return _cut(root), below


def _alive(shaped: Floats, raw: Floats) -> Floats:
    """Shaped logits, or the raw ones where so few ids are left that a wrong rule could not show."""
    return shaped if np.isfinite(shaped).sum() >= 4 else raw


def _cut(logits: Floats) -> Floats:
    """Logits [WIDTH] of the law cut to its best ids and the rest; spread to a deviation of at most 2, so that several
    tokens are likely and a wrong rule shows."""
    exact = np.sort(logits.astype(np.float64))[::-1]
    exact = exact[np.isfinite(exact)]
    best, rest = exact[: WIDTH - 1], exact[WIDTH - 1 :]
    if len(rest):
        best = np.append(best, np.logaddexp.reduce(rest))
    best = best - best.max()
    best *= min(1.0, 2.0 / max(float(best.std()), 1e-9))
    out = np.full(WIDTH, -np.inf, np.float32)
    # Ids in an order that is not by probability, the same every time.
    out[np.random.default_rng(3).permutation(WIDTH)[: len(best)]] = best
    return out
