"""Checks of law: an acceptor that keeps the distribution only is tried on the model's own distributions, many times.

The loop is known to show the acceptor the right logits and keys (`bits.view`), so the acceptor alone is on trial here.
At a few fixed prefixes the model's shaped law is cut to its best ids and one that stands for the rest, a draft is laid
below it, and `verify` runs under thousands of seeds. The first token, and the second where the first was a draft, must
follow the law. A true sampler exceeds the total variation allowed with a chance of 5e-8 per comparison, under 1e-6
over all of them; a bias of 5 % in total variation exceeds it almost surely.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steno.core import ROOT, Key
from steno.decode.base import Draft, Request

from ._drafts import sample_laws
from ._lab import Broken, Floats, Found, Lab, Skip, chain, forest
from ._plain import Lone, Rule
from ._stats import samples_for, total_variation, variation_limit

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


def law(lab: Lab) -> Found:
    """What comes out follows the model's law: without drafts, and where ids may change, with single drafts, siblings
    and sampled drafts, first and second token."""
    rule = Rule(lab.plan)
    cases = list(_cases(lab, rule))
    if lab.by_ids:
        # Ids equal those without a draft, so the law without a draft is all there is to see.
        cases = cases[:1]
        best = int(cases[0].root.argmax())
        if all(_plainly(rule, cases[0].root, seed) == best for seed in range(40)):
            raise Skip("the acceptor draws nothing: it takes the best id")
    worst, count = 0.0, 0
    for case in cases:
        first = np.zeros(WIDTH)
        second: dict[int, Doubles] = {}
        for seed in range(DRAWS):
            draft = case.draft(seed)
            view = Lone(case.root, Request(number=0, prompt=(0,), seed=seed), 1, case.rows(draft))
            view.depth = [0, *_depths(draft)]
            path, after = rule.acceptor.verify(draft, view)
            tokens = [draft.tokens[i] for i in path] + [after]
            first[tokens[0]] += 1
            if len(tokens) > 1:
                second.setdefault(tokens[0], np.zeros(WIDTH))[tokens[1]] += 1
        worst = max(worst, _follow(first, _softmax(case.root), f"{case.name}: first token"))
        count += 1
        for token, seen in second.items():
            if seen.sum() > DRAWS / 8:
                where = f"{case.name}: token after accepted draft {token}"
                worst = max(worst, _follow(seen, _softmax(case.below[token]), where))
                count += 1
    return Found(count, {"draws_per_case": DRAWS, "worst_share_of_limit": worst, "bias_found_from": BIAS})


def zero(lab: Lab) -> Found:
    """What the law forbids never comes out: not at a coin of exactly 0, not from what is left after a rejection."""
    rule = Rule(lab.plan)
    root, below = _laws(lab, rule, lab.prompts[0])
    best = [int(i) for i in np.argsort(-root, kind="stable")]
    banned = best[0]
    root = root.copy()
    root[banned] = -np.inf
    if not np.isfinite(root).any():
        root = np.where(np.arange(WIDTH) == banned, -np.inf, np.float32(0)).astype(np.float32)
    cases = 0
    for tokens in ([banned], [banned, banned], [banned, best[1]]):
        draft = Draft(tuple(tokens), (ROOT,) * len(tokens))
        for number in range(200):
            view = (_Zeros if number == 0 else Lone)(
                root, Request(number=number, prompt=(0,)), 1, [below[t] for t in tokens]
            )
            path, after = rule.acceptor.verify(draft, view)
            came = draft.tokens[path[0]] if path else after
            if came == banned:
                coin = "a coin of 0" if number == 0 else f"request {number}"
                raise Broken(f"a token of probability 0 came out at {coin} with drafts {tokens}")
            if path and draft.parents[path[0]] != ROOT:
                raise Broken("the accepted path does not begin at the pending token")
            cases += 1
    return Found(cases)


def _plainly(rule: Rule, logits: Floats, seed: int) -> int:
    return rule.acceptor.verify(Draft(), Lone(logits, Request(number=0, prompt=(0,), seed=seed), 1))[1]


class _Zeros(Lone):
    """Every random number is exactly 0."""

    def key(self, node: int, purpose: str) -> Key:
        return _ZeroKey(0, 0, 0, purpose)


class _ZeroKey(Key):
    def bits(self, size: int = 128) -> int:
        return 0


def _cases(lab: Lab, rule: Rule) -> Iterator[Case]:
    for number, prompt in enumerate(lab.prompts[:2]):
        root, below = _laws(lab, rule, prompt)
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


def _laws(lab: Lab, rule: Rule, prompt: tuple[int, ...]) -> tuple[Floats, dict[int, Floats]]:
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


def _follow(seen: Doubles, law: Doubles, where: str) -> float:
    """Raise Broken where `seen` is too far from `law`; returns the share of the allowed variation that was used up."""
    order = np.argsort(-law, kind="stable")
    cells = [[i] for i in order[: CELLS - 1]] + [list(order[CELLS - 1 :])]
    counts, wanted = (np.array([v[cell].sum() for cell in cells]) for v in (seen, law))
    if seen[law == 0].sum():
        raise Broken(f"{where}: a token of probability 0 came out")
    limit = variation_limit(CELLS, int(seen.sum()), ALARM)
    apart = total_variation(counts, wanted)
    if apart > limit:
        raise Broken(f"{where}: total variation {apart:.3f} from the model's law, {limit:.3f} is allowed")
    return apart / limit


def _softmax(logits: Floats) -> Doubles:
    law = np.exp(logits.astype(np.float64) - logits.max())
    return law / law.sum()


def _depths(draft: Draft) -> list[int]:
    out: list[int] = []
    for up in draft.parents:
        out.append(1 if up == ROOT else out[up] + 1)
    return out


CHECKS = {"law.variation": law, "law.zero": zero}
