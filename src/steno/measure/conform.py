"""The conformance kit: does a plan keep on this model what it promises? `steno verify` prints what it says.

Every check compares with plain decoding written a second time (`_plain`), on the user's own model and prompts. Real
drafts are joined by the kit's own, which are right often enough to be accepted and wrong in every way that has broken
an engine (specs of the field: bonus tokens, ragged rows, siblings, coins, ends inside a draft, re-encoded blocks).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter

from steno.core import Model, Plan
from steno.core.errors import PlanError, PromptError
from steno.decode.base import Request

from . import _conform_bits, _conform_cache, _conform_edges, _conform_ids, _conform_law, _conform_session
from ._lab import BEYOND, Found, Lab, perform
from ._plain import plain
from .base import Check, Verdict

LENGTHS = (9, 1, 21, 4, 13, 2, 30, 6, 17, 3)
"""Tokens of the kit's own prompts: ragged, and more of them than rows, so that rows are refilled."""

TOKENS = 16
LONGEST = 48
SECONDS = 40.0
"""Time a run is cut to on a slow model, by fewer tokens and prompts."""

FORWARDS = 40
"""Forwards per prompt and token that a run costs, roughly."""


def verify(
    model: Model,
    plan: Plan,
    *,
    rows: Sequence[int] = (1, 3, 8),
    seeds: Sequence[int] = (0,),
    prompts: Sequence[Sequence[int]] = (),
    tokens: int | None = None,
    on_check: Callable[[Check], None] | None = None,
) -> Verdict:
    """Run every check of `plan` on `model`.

    rows      batch sizes
    prompts   token ids to try beside the kit's own random ones: of many some, and of each the last `LONGEST` tokens
    tokens    tokens per text; None: as many as the model's speed allows
    on_check  told of each check as it ends
    Raises PlanError where the plan does not run on the model's backend or searches for a text of its own, PromptError
    for ids outside the vocabulary.
    """
    plan.check(model.backend)
    for knob in plan.find("decode.search"):
        raise PlanError(
            f"{knob.name} searches for a text of its own, and promises nothing that could be checked. "
            f"Measure what it finds: steno bench {knob.name}"
        )
    start = perf_counter()
    lab = _prepare(model, plan, tuple(rows), tuple(seeds), prompts=prompts, tokens=tokens)
    checks: list[Check] = []
    for name, rule in catalogue(lab).items():
        checks.append(perform(name, rule, lab))
        if on_check:
            on_check(checks[-1])
    lengths = sorted(map(len, lab.prompts))
    return Verdict(
        model=model.name,
        backend=model.backend,
        fingerprint=model.fingerprint,
        plan=plan.to_toml(),
        keeps=plan.keeps,
        checks=tuple(checks),
        covered=(
            f"{len(lab.prompts)} prompts of {lengths[0]} to {lengths[-1]} tokens, {lab.tokens} tokens each, "
            f"batches of {', '.join(map(str, lab.rows))}, seeds {', '.join(map(str, lab.seeds))}"
        ),
        seconds=perf_counter() - start,
    )


def catalogue(lab: Lab) -> dict[str, Callable[[Lab], Found]]:
    """Every check by name, in the order they run: what others rest on comes first."""
    return {
        **_conform_session.CHECKS,
        **_conform_cache.CHECKS,
        **_conform_ids.checks(lab),
        **_conform_bits.CHECKS,
        **_conform_law.CHECKS,
        **_conform_edges.CHECKS,
    }


def _prepare(
    model: Model,
    plan: Plan,
    rows: tuple[int, ...],
    seeds: tuple[int, ...],
    *,
    prompts: Sequence[Sequence[int]],
    tokens: int | None,
) -> Lab:
    bad = next((i for p in prompts for i in p if not 0 <= i < model.vocab), None)
    if bad is not None:
        raise PromptError(f"token id {bad} is outside the model's vocabulary of {model.vocab}. Use its own tokenizer.")
    lab = Lab(model=model, plan=plan, prompts=((0,),), tokens=tokens or TOKENS, rows=rows, seeds=seeds)
    most = max(1, model.context - lab.tokens - BEYOND)
    own = [lab.ids(min(n, most), 0, i) for i, n in enumerate(LENGTHS)]
    # One that decoding carries across a change of the cache's form.
    crossing = _conform_cache.reach(lab, model.context)
    if crossing:
        own[0] = lab.ids(crossing, 0, 100)
    count, length = max(rows) + 2, lab.tokens
    # Of many prompts some, evenly: the kit's first three stay, one of them being a single token.
    given = [list(p)[-min(LONGEST, most) :] for p in prompts if len(p)]
    given = given[:: max(1, -(-len(given) // max(1, count - 3)))]
    mixed = own[:3] + given + own[3:]
    if tokens is None:
        pace = _pace(model, plan, own[0])
        length = int(min(TOKENS, max(6, SECONDS / (pace * FORWARDS * count))))
        if pace * FORWARDS * count * length > 3 * SECONDS:
            count = max(3, *rows)
    return replace(lab, prompts=tuple(tuple(p) for p in mixed[:count]), tokens=length)


def _pace(model: Model, plan: Plan, prompt: Sequence[int]) -> float:
    """Seconds per token of plain decoding."""
    request = Request(number=0, prompt=tuple(prompt), max_tokens=3)
    capacity = min(model.context, len(prompt) + 4)
    laps: list[float] = []
    # The first run warms up.
    for _ in range(2):
        start = perf_counter()
        plain(model, plan, [request], capacity)
        laps.append(perf_counter() - start)
    return min(laps) / request.max_tokens
