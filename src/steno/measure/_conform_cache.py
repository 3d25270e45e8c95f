"""Checks of cache forms: what a cache holds is a function of the committed tokens, not of how they came."""

from collections.abc import Sequence

import numpy as np

from steno.core import ROOT

from ._lab import BEYOND, Broken, Floats, Found, Lab, Skip, chain, forest, same

SCHEDULES = 3


def schedule(lab: Lab) -> Found:
    """Any pattern of drafts and acceptances leaves the same cache as one token at a time: same logits, same bytes."""
    if lab.cache is None or not lab.plan.find("cache"):
        raise Skip("the plan has no cache form")
    capacity = lab.capacity
    texts = [lab.ids(capacity, 50), lab.ids(max(2, capacity * 2 // 3), 51)]
    steps = len({lab.cache.due(n) for n in range(capacity + 1)}) - 1
    want, bytes_wanted = _walk(lab, texts, None)
    apart, cases = 0.0, 0
    for turn in range(SCHEDULES):
        got, bytes_got = _walk(lab, texts, np.random.default_rng([lab.seeds[0], 52, turn]))
        exact = lab.open().caps.chain_exact
        for place, logits in got.items():
            where = f"schedule {turn + 1}, row {place[0]}, after {place[1] + 1} tokens"
            apart = max(apart, same(logits, want[place], exact, where))
            cases += 1
        if bytes_got != bytes_wanted:
            raise Broken(
                f"schedule {turn + 1} ends with the bytes {bytes_got}, one token at a time with {bytes_wanted}"
            )
    return Found(cases, {"changes_of_form": steps, "max_difference": apart})


def room(lab: Lab) -> Found:
    """Room never reaches past the next change of form, is at least 1, and 0 only where a row is full."""
    if lab.cache is None or not lab.plan.find("cache"):
        raise Skip("the plan has no cache form")
    session, spec = lab.open(), lab.cache
    for at, token in enumerate(lab.ids(lab.capacity, 53)):
        here = session.room()[0]
        due = [spec.due(n) for n in range(at, at + here)]
        if here < 1 or here > lab.capacity - at:
            raise Broken(f"at {at} of {lab.capacity} tokens room is {here}")
        if due[0] != due[-1]:
            raise Broken(f"at {at} tokens room is {here}, and a step that long crosses a change of form")
        session.forward(forest([chain([token])]))
        session.commit([[0]])
    return Found(lab.capacity)


def _walk(
    lab: Lab, texts: Sequence[Sequence[int]], rng: np.random.Generator | None
) -> tuple[dict[tuple[int, int], Floats], dict[str, int]]:
    """Teacher-force `texts`; logits by (row, position), and the bytes at the end. Without `rng` a token at a time."""
    session = lab.open(len(texts))
    at = [0] * len(texts)
    found: dict[tuple[int, int], Floats] = {}
    while any(n < len(text) for n, text in zip(at, texts, strict=True)):
        rows, takes = [], []
        room = session.room()
        for b, text in enumerate(texts):
            left = min(room[b], len(text) - at[b], session.caps.max_width)
            size = min(1, left) if rng is None else int(rng.integers(0, left + 1))
            take = size if rng is None or not size else int(rng.integers(1, size + 1))
            tokens = list(text[at[b] : at[b] + size])
            # Drafts beyond what is taken are wrong: they must leave no trace.
            tokens[take:] = lab.ids(size - take, 54, at[b], b)
            rows.append((tokens, list(range(ROOT, size - 1))))
            takes.append(take)
        logits = np.array(session.forward(forest(rows)).logits)
        session.commit([list(range(take)) for take in takes])
        for b, take in enumerate(takes):
            for node in range(take):
                found[b, at[b] + node] = logits[b, node]
            at[b] += take
    return found, session.cache_bytes()


def reach(lab: Lab, most: int) -> int:
    """A prompt length at which decoding `lab.tokens` more crosses a change of form; 0 where none lies within `most`."""
    if lab.cache is None:
        return 0
    margin = lab.tokens // 2
    end = max(0, most - lab.tokens - BEYOND)
    for n in range(margin + 1, end + margin):
        if lab.cache.due(n + 1) != lab.cache.due(n):
            return n - margin
    return 0


CHECKS = {"cache.schedule": schedule, "cache.room": room}
