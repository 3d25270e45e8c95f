"""Checks of what lies under the ids: the logits of committed positions, and what the loop shows to the acceptor."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import ClassVar

import numpy as np

from steno.core import ROOT, Card, Keeps, Key
from steno.decode.base import AcceptorKnob, Completion, Draft, Request, View

from ._conform_ids import drafted
from ._drafts import sample_laws
from ._lab import Broken, Floats, Found, Lab, Skip, chain, forest, lineage, same
from ._plain import Past, Rule, forced, without
from ._watch import Watched


def _batch(lab: Lab) -> list[Request]:
    """Requests that fill one session: bits are promised between sessions of one size."""
    return lab.requests(lab.seeds[0])[: min(3, len(lab.prompts))]


def _forced(lab: Lab, done: list[Completion]) -> dict[Past, Floats]:
    """Raw logits of plain decoding after every past of what came out, in a session of the same size."""
    texts = [c.request.prompt + c.tokens for c in done]
    return forced(lab.model, lab.plan, texts, [len(c.request.prompt) for c in done], lab.capacity)


def _promise(lab: Lab) -> Keeps:
    """How near logits of drafted and of plain decoding have to be."""
    caps = lab.open().caps
    # A session whose trees are weaker has its accepted paths run again as chains by the loop.
    return Keeps.BITS if Keeps.BITS in (caps.chain_exact, caps.tree_exact) else Keeps.NEAR


def logits_equal(kind: str) -> Callable[[Lab], Found]:
    """The check for one shape of drafts."""

    def check(lab: Lab) -> Found:
        caps = lab.open().caps
        if kind == "tree" and not caps.tree:
            raise Skip("this session runs chains only")
        if kind == "own" and not lab.plan.find("decode.draft"):
            raise Skip("the plan has no drafter")
        promise = _promise(lab)
        requests = _batch(lab)
        watched = Watched(lab.model)
        done = lab.run(drafted(lab, kind, lab.seeds[0]), requests, len(requests), watched)
        want = _forced(lab, done)
        digest = blake2b(digest_size=8)
        apart = 0.0
        for past, logits in sorted(watched.seen.items()):
            if past not in want:
                raise Broken(f"committed {len(past)} tokens ending in {list(past[-4:])}, which no output begins with")
            apart = max(apart, same(logits, want[past], promise, f"after {len(past)} tokens ending in {past[-1]}"))
            digest.update(logits.tobytes())
        for completion in done:
            kept = len(completion.request.prompt) + len(completion.tokens) - 1
            if len(completion.tokens) > lab.tokens + 1 or kept < len(completion.request.prompt):
                raise Broken(f"prompt {completion.request.number} came out {len(completion.tokens)} tokens long")
        numbers = {"bits_promised": float(promise is Keeps.BITS), "max_difference": apart}
        if kind == "tree":
            numbers["commits_off_the_first_branch"] = watched.branching
        return Found(len(watched.seen), numbers)

    drafts = {"own": "the plan's own drafts", "chain": "drafts in chains", "tree": "drafts in trees"}[kind]
    check.__doc__ = f"Logits at committed positions are those of plain decoding, with {drafts}."
    return check


@dataclass(slots=True)
class Sight:
    """One look of the acceptor: which node, what it saw, and what lay above."""

    request: tuple[int, int]
    position: int
    draft: tuple[int, ...]
    branch: tuple[int, ...]
    logits: Floats
    accepted: bool


def _spy(inner: AcceptorKnob, log: list[Sight]) -> AcceptorKnob:
    """`inner`, writing down what it is shown at every node it may reach."""

    @dataclass(frozen=True, kw_only=True)
    class Spy(AcceptorKnob):
        card: ClassVar[Card] = Card(keeps=inner.card.keeps)

        @property
        def name(self) -> str:
            return "decode.accept.spy"

        def verify(self, draft: Draft, view: View) -> tuple[list[int], int]:
            path, after = inner.verify(draft, view)
            for node in (ROOT, *range(len(draft.tokens))):
                up = lineage(draft.parents, node)
                key: Key = view.key(node, "token")
                log.append(
                    Sight(
                        request=(key.request, key.seed),
                        position=key.position,
                        draft=draft.tokens,
                        branch=tuple(draft.tokens[i] for i in up),
                        logits=np.array(view.logits(node)),
                        accepted=all(i in path for i in up),
                    )
                )
            return path, after

    return Spy()


def view(lab: Lab) -> Found:
    """The acceptor sees, at every node, the shaped logits and the random key of that node's own past."""
    caps = lab.open().caps
    log: list[Sight] = []
    rule = Rule(lab.plan)
    seed = lab.seeds[-1]
    plan = drafted(lab, "tree" if caps.tree and caps.tree_exact is caps.chain_exact else "chain", seed)
    plan = without(plan, "decode.accept").with_knobs(_spy(rule.acceptor, log))
    requests = lab.requests(seed)[: min(3, len(lab.prompts))]
    done = lab.run(plan, requests, len(requests))
    texts = {c.request.number: c.request.prompt + c.tokens for c in done}
    forced_rows = _forced(lab, done)
    promise = _promise(lab)
    strays = 0
    apart = 0.0
    prompts = {c.request.number: len(c.request.prompt) for c in done}
    begun = dict(prompts)
    for sight in log:
        number, keyed = sight.request
        above = sight.position - len(sight.branch)
        where = f"prompt {number}, position {sight.position}"
        if number not in texts or keyed != seed:
            raise Broken(f"a key names request {number} and seed {keyed}, which was not asked for")
        if not sight.branch:
            # Every step starts at the pending token, where the last one left off.
            if not begun[number] <= above < len(texts[number]):
                raise Broken(f"{where}: the step begins at {above}, and the text stood at {begun[number]} or later")
            begun[number] = above + 1
        past = texts[number][:above] + sight.branch
        raw = forced_rows.get(past)
        if raw is None:
            # A node off the text: asked of a fresh session of the same size, for a few of them.
            if strays >= 24:
                continue
            strays += 1
            raw = _alone(lab, past, prompts[number] - 1, len(requests))
        apart = max(apart, same(sight.logits, rule.shape(raw, past), promise, f"{where}, branch {sight.branch}"))
    if not log:
        raise Broken("the loop never asked the acceptor")
    numbers = {"bits_promised": float(promise is Keeps.BITS), "off_the_text": strays, "max_difference": apart}
    return Found(len(log), numbers)


def _alone(lab: Lab, past: Past, prompt: int, batch: int) -> Floats:
    """Logits after `past` in the first row of a session, its prompt prefilled and the rest run one by one.

    Not all in one prefill: a recurrent model's scan and its steps round differently.
    """
    session, idle = lab.open(batch), batch - 1
    session.prefill([past[:prompt], *[[]] * idle])
    for token in past[prompt:]:
        step = session.forward(forest([chain([token]), *[chain([])] * idle]))
        logits = np.array(step.logits[0, 0])
        session.commit([[0], *[[]] * idle])
    return logits


def laws(lab: Lab) -> Found:
    """The laws that draft tokens were sampled from reach the acceptor as they were, row by row."""
    if lab.by_ids:
        raise Skip("ids are equal, so laws of drafts do not enter")
    seen = 0
    inner = Rule(lab.plan).acceptor

    @dataclass(frozen=True, kw_only=True)
    class Judge(AcceptorKnob):
        card: ClassVar[Card] = Card(keeps=inner.card.keeps)

        @property
        def name(self) -> str:
            return "decode.accept.judge"

        def verify(self, draft: Draft, view: View) -> tuple[list[int], int]:
            nonlocal seen
            if draft.tokens:
                key = view.key(ROOT, "token")
                rng = np.random.Generator(np.random.Philox(key=Key(seed, key.request, key.position, "draft").bits(128)))
                want = sample_laws(rng, 4, lab.model.vocab)[: len(draft.tokens)]
                if draft.laws is None or not np.array_equal(draft.laws, want):
                    raise Broken(f"prompt {key.request}, position {key.position}: a draft lost the law it came from")
                seen += 1
            return inner.verify(draft, view)

    seed = lab.seeds[0]
    plan = without(drafted(lab, "sampled", seed), "decode.accept").with_knobs(Judge())
    if lab.open().caps.max_width < 5:
        raise Skip("this session is too narrow for a draft of four")
    lab.run(plan, _batch(lab), 3)
    if not seen:
        raise Broken("sampled drafts never reached the acceptor")
    return Found(seen)


CHECKS = {
    "bits.own": logits_equal("own"),
    "bits.chain": logits_equal("chain"),
    "bits.tree": logits_equal("tree"),
    "bits.view": view,
    "bits.laws": laws,
}
