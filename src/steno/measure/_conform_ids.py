"""Checks of ids: drafted decoding against plain decoding, by drafter, batch and order of requests."""

from collections.abc import Callable, Sequence

from steno.core import Keeps, Plan
from steno.decode.base import Completion

from ._drafts import Scripted
from ._lab import Broken, Found, Lab, Skip
from .fidelity import divergence


def drafted(lab: Lab, kind: str, seed: int) -> Plan:
    """The plan with one of the kit's drafters ("own": with its own, "none": without any)."""
    if kind == "own":
        return lab.plan
    if kind == "none":
        return lab.undrafted
    ends = tuple(sorted(lab.model.eos)) or (0,)
    return lab.undrafted.with_knobs(Scripted(texts=lab.texts(seed), kind=kind, ends=ends, seed=seed))


def ids_equal(kind: str, batch: int) -> Callable[[Lab], Found]:
    """The check for one drafter at one batch size."""

    def check(lab: Lab) -> Found:
        if kind == "own" and not lab.plan.find("decode.draft"):
            raise Skip("the plan has no drafter")
        if kind != "none" and not lab.by_ids:
            raise Skip(f"the plan's decoding keeps {lab.level.value}, so drafts may change ids")
        cases = accepted = passes = 0
        for seed in lab.seeds:
            done = lab.run(drafted(lab, kind, seed), lab.requests(seed), batch)
            compare(lab, seed, done)
            cases += sum(len(c.tokens) for c in done)
            accepted += sum(c.stats.accepted for c in done)
            passes += sum(c.stats.passes for c in done)
        if kind in ("chain", "tree", "hostile") and lab.tokens > 3 and lab.cache is None and not accepted:
            raise Broken("right drafts were proposed and none was accepted, so this check could not find a fault")
        return Found(cases, {"tokens_per_pass": cases / passes, "accepted": accepted} if passes else {})

    drafts = {
        "own": "the plan's own drafts",
        "none": "no drafts",
        "chain": "drafts partly right",
        "tree": "trees of right and wrong drafts",
        "hostile": "drafts too long, with end tokens, unknown ids and twins",
    }[kind]
    check.__doc__ = f"Ids equal plain decoding with {drafts}, {batch} row{'s' if batch > 1 else ''} at a time."
    return check


def compare(lab: Lab, seed: int, done: Sequence[Completion]) -> None:
    """Raise Broken at the first id that is not the reference's."""
    for completion in done:
        number = completion.request.number
        most = min(completion.request.max_tokens, lab.capacity + 1 - len(lab.prompts[number]))
        want, got = lab.reference[seed][number][:most], completion.tokens
        at = divergence(got, want)
        if at is not None:
            expected, came = (str(t[at]) if at < len(t) else "the end" for t in (want, got))
            near = lab.open().caps.chain_exact is Keeps.NEAR
            raise Broken(
                f"prompt {number} ({len(lab.prompts[number])} tokens), seed {seed}: position {at} is {came}, "
                f"plain decoding gives {expected}"
                + (". This session's rounding depends on shapes; pin them with --pinned." if near else "")
            )


def order(lab: Lab) -> Found:
    """Neither other rows nor the order of requests change an output: alone, and among others in reverse."""
    batch = max(lab.rows)
    cases = 0
    for seed in lab.seeds:
        plan = drafted(lab, "chain", seed)
        requests = lab.requests(seed)
        alone = lab.run(plan, requests, 1)
        mixed = lab.run(plan, requests[::-1], batch)[::-1]
        for one, two in zip(alone, mixed, strict=True):
            at = divergence(one.tokens, two.tokens)
            if at is not None:
                raise Broken(
                    f"prompt {one.request.number}, seed {seed}: position {at} alone and among {batch} rows in reverse "
                    f"order differ"
                )
            cases += len(one.tokens)
    return Found(cases)


def checks(lab: Lab) -> dict[str, Callable[[Lab], Found]]:
    """Every drafter at every batch size."""
    out: dict[str, Callable[[Lab], Found]] = {}
    for batch in lab.rows:
        for kind in ("none", "own", "chain", "tree", "hostile"):
            out[f"ids.{kind}.{batch}"] = ids_equal(kind, batch)
    out["ids.order"] = order
    return out
