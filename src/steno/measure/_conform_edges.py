"""Checks of ends: end tokens, counts, stop strings, prompts of one token and at the limit of the context."""

from collections.abc import Sequence
from dataclasses import replace

from steno.core import Plan
from steno.core.errors import PromptError
from steno.decode.base import Completion, Request
from steno.decode.loop import generate

from ._conform_ids import compare, drafted
from ._lab import FLAT, Broken, Found, Lab, Skip
from ._plain import cut, plain
from ._watch import Watched


def _plan(lab: Lab, seed: int) -> Plan:
    return drafted(lab, "chain", seed)


def _expect(lab: Lab, done: Sequence[Completion], ends: frozenset[int], seed: int) -> int:
    """Compare with the reference cut by hand, or check the cut alone where drafts may change ids."""
    for c in done:
        number = c.request.number
        if not c.tokens:
            raise Broken(f"prompt {number} came out empty")
        if cut(c.tokens, ends, c.request.max_tokens) != c.tokens:
            raise Broken(f"prompt {number} goes on past an end: {list(c.tokens)} (end tokens {sorted(ends)})")
        reason = "eos" if c.tokens[-1] in ends else "length"
        if c.finish != reason:
            raise Broken(f"prompt {number} finished by '{c.finish}', and its last token says '{reason}'")
        if lab.by_ids:
            want = cut(lab.reference[seed][number], ends, c.request.max_tokens)
            if c.tokens != want:
                raise Broken(f"prompt {number} came out as {list(c.tokens)}, plain decoding gives {list(want)}")
    return sum(len(c.tokens) for c in done)


def eos(lab: Lab) -> Found:
    """A text ends with its first end token, be it in the middle of an accepted draft; nothing comes after it."""
    seed = lab.seeds[0]
    # End tokens taken from the middle of what comes out, so that they stand inside drafts.
    made = lab.reference[seed]
    ends = frozenset(text[min(len(text) - 1, 2 + i % 3)] for i, text in enumerate(made[:3]))
    requests = [replace(r, ignore_eos=False) for r in lab.requests(seed)]
    cases = 0
    for batch in (1, max(lab.rows)):
        watched = Watched(lab.model, ends)
        cases += _expect(lab, lab.run(_plan(lab, seed), requests, batch, watched), ends, seed)
    ignoring = lab.run(_plan(lab, seed), lab.requests(seed), 1, Watched(lab.model, ends))
    if lab.by_ids:
        compare(lab, seed, ignoring)
    return Found(cases)


def length(lab: Lab) -> Found:
    """A text has exactly the tokens that were asked for, 0 and 1 included, however long the drafts."""
    seed = lab.seeds[0]
    cases = 0
    for most in (0, 1, 2, lab.tokens):
        requests = [replace(r, max_tokens=most) for r in lab.requests(seed)]
        for c in lab.run(_plan(lab, seed), requests, min(3, len(requests))):
            room = lab.capacity + 1 - len(c.request.prompt)
            if len(c.tokens) != min(most, room):
                raise Broken(f"prompt {c.request.number}: {most} tokens were asked for, {len(c.tokens)} came")
            if lab.by_ids and c.tokens != lab.reference[seed][c.request.number][: min(most, room)]:
                raise Broken(f"prompt {c.request.number}: other ids where max_tokens is {most}")
            cases += 1
    return Found(cases)


def stop(lab: Lab) -> Found:
    """A stop string ends the text before its first occurrence, also where it lies across drafted tokens."""
    seed = lab.seeds[0]

    def text(ids: Sequence[int]) -> str:
        return "".join(f"{i}," for i in ids)

    cases = 0
    for request in lab.requests(seed)[: min(3, len(lab.prompts))]:
        free = lab.run(_plan(lab, seed), [request], 1)[0].tokens
        if len(free) < 3:
            continue
        # The border between the second and the third token, so that no single token holds the string.
        border = text(free[:3])
        start = len(text(free[:2])) - 1
        word = border[start : start + 2]
        whole = text(free)
        want = whole[: whole.index(word)]
        stopped = replace(request, stop=(word,))
        plan = _plan(lab, seed)
        done = generate(lab.model, [stopped], plan, text=text, costs=FLAT, capacity=lab.capacity)[0]
        if (done.text, done.finish) != (want, "stop"):
            raise Broken(f"prompt {request.number}: stop at '{word}' gave '{done.text}' ({done.finish}), not '{want}'")
        cases += 1
    if not cases:
        raise Skip("texts of three tokens do not fit the context")
    return Found(cases)


def limit(lab: Lab) -> Found:
    """A prompt may fill the context to its last place: one token more comes out, and a longer prompt is refused."""
    capacity = min(lab.model.context, 24)
    seed = lab.seeds[0]
    cases = 0
    for size in (1, capacity - 3, capacity - 1, capacity):
        if size < 1:
            continue
        request = Request(number=0, prompt=tuple(lab.ids(size, 60)), max_tokens=capacity, seed=seed, ignore_eos=True)
        want = plain(lab.model, lab.plan, [request], capacity)[0]
        for plan in (lab.undrafted, lab.plan):
            done = generate(lab.model, [request], plan, costs=FLAT, capacity=capacity)[0]
            if len(done.tokens) != len(want) or (lab.by_ids and done.tokens != want):
                raise Broken(f"a prompt of {size} in {capacity} places gives {list(done.tokens)}, not {list(want)}")
            reason = "length" if len(want) == capacity else "context"
            if done.finish != reason:
                raise Broken(f"a prompt of {size} in {capacity} places finished by '{done.finish}', not '{reason}'")
            cases += 1
    for bad in ((), tuple(lab.ids(capacity + 1, 61)), (lab.model.vocab,), (-1,)):
        try:
            generate(lab.model, [Request(number=0, prompt=bad)], lab.plan, costs=FLAT, capacity=capacity)
        except PromptError:
            cases += 1
        else:
            raise Broken(f"a prompt of {len(bad)} tokens beginning {list(bad[:1])} was taken, and cannot be served")
    return Found(cases)


CHECKS = {"edge.eos": eos, "edge.length": length, "edge.stop": stop, "edge.limit": limit}
