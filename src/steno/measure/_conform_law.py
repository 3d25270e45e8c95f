"""Checks of law: an acceptor that keeps the distribution only is tried on the model's own distributions, many times.

The loop is known to show the acceptor the right logits and keys (`bits.view`), so the acceptor alone is on trial here.
At a few fixed prefixes the model's shaped law is cut to its best ids and one that stands for the rest, a draft is laid
below it, and `verify` runs under thousands of seeds. The first token, and the second where the first was a draft, must
follow the law. A true sampler exceeds the total variation allowed with a chance of 5e-8 per comparison, under 1e-6
over all of them; a bias of 5 % in total variation exceeds it almost surely.
"""

import numpy as np
import numpy.typing as npt

from steno.core import ROOT, Key
from steno.decode.base import Draft, Request

from ._lab import Broken, Floats, Found, Lab, Skip
from ._laws import ALARM, BIAS, CELLS, DRAWS, WIDTH, cases, laws
from ._plain import Lone, Rule
from ._stats import total_variation, variation_limit

Doubles = npt.NDArray[np.float64]


def law(lab: Lab) -> Found:
    """What comes out follows the model's law: without drafts, and where ids may change, with single drafts, siblings
    and sampled drafts, first and second token."""
    rule = Rule(lab.plan)
    tried = list(cases(lab, rule))
    if lab.by_ids:
        # Ids equal those without a draft, so the law without a draft is all there is to see.
        tried = tried[:1]
        best = int(tried[0].root.argmax())
        if all(_plainly(rule, tried[0].root, seed) == best for seed in range(40)):
            raise Skip("the acceptor draws nothing: it takes the best id")
    worst, count = 0.0, 0
    for case in tried:
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
    root, below = laws(lab, rule, lab.prompts[0])
    best = [int(i) for i in np.argsort(-root, kind="stable")]
    banned = best[0]
    root = root.copy()
    root[banned] = -np.inf
    if not np.isfinite(root).any():
        root = np.where(np.arange(WIDTH) == banned, -np.inf, np.float32(0)).astype(np.float32)
    count = 0
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
            count += 1
    return Found(count)


def _plainly(rule: Rule, logits: Floats, seed: int) -> int:
    return rule.acceptor.verify(Draft(), Lone(logits, Request(number=0, prompt=(0,), seed=seed), 1))[1]


class _Zeros(Lone):
    """Every random number is exactly 0."""

    def key(self, node: int, purpose: str) -> Key:
        return _ZeroKey(0, 0, 0, purpose)


class _ZeroKey(Key):
    def bits(self, size: int = 128) -> int:
        return 0


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
