"""What the checks of the conformance kit share: the case they are run on, how they end, how numbers are compared."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from time import perf_counter

import numpy as np
import numpy.typing as npt

from steno.core import PAD, ROOT, CacheSpec, Keeps, Model, Nodes, Plan, Session, weakest
from steno.core.errors import StenoError
from steno.decode import CostTable
from steno.decode.base import Completion, Request
from steno.decode.loop import generate

from ._plain import Past, plain, without
from .base import Check, Status
from .bytes import cache_form

Floats = npt.NDArray[np.float32]
Forest = tuple[Sequence[int], Sequence[int]]

FLAT = CostTable({1: 1.0, 2: 1.0})
"""Forwards of every width cost the same: the loop then verifies whatever it is given."""

BEYOND = 8
"""Tokens the reference goes on past what is asked for, so that drafts reach over the end."""


class Broken(Exception):
    """A rule does not hold; the message says where."""


class Skip(Exception):
    """A check does not apply; the message says why."""


@dataclass
class Found:
    """What a check that passed has to show."""

    cases: int = 0
    numbers: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, eq=False)
class Lab:
    """One model, one plan, and the texts to try them on."""

    model: Model
    plan: Plan
    prompts: tuple[tuple[int, ...], ...]
    tokens: int
    rows: tuple[int, ...]
    seeds: tuple[int, ...]

    @property
    def capacity(self) -> int:
        """Tokens of a row in every session of the kit: bits are compared between sessions of one size."""
        most = max(map(len, self.prompts)) + self.tokens + BEYOND
        return min(most, self.model.context)

    @property
    def cache(self) -> CacheSpec | None:
        return cache_form(self.plan)

    @property
    def level(self) -> Keeps:
        """What decoding promises against plain decoding on the same cache form."""
        knobs = self.plan.find("decode")
        return weakest(Keeps(k.card.keeps) for k in knobs if not k.card.task)

    @property
    def by_ids(self) -> bool:
        """Whether drafts may not change an id."""
        return self.level.covers(Keeps.TOKENS)

    @property
    def undrafted(self) -> Plan:
        return without(self.plan, "decode.draft")

    def requests(self, seed: int, extra: int = 0) -> list[Request]:
        """A request per prompt, as long as the context allows, past end tokens."""
        return [
            Request(number=i, prompt=p, max_tokens=self.tokens + extra, seed=seed, ignore_eos=True)
            for i, p in enumerate(self.prompts)
        ]

    @cached_property
    def reference(self) -> dict[int, list[Past]]:
        """By seed what plain decoding makes of each prompt, `BEYOND` tokens further than is asked for."""
        return {s: plain(self.model, self.plan, self.requests(s, BEYOND), self.capacity) for s in self.seeds}

    def texts(self, seed: int) -> tuple[Past, ...]:
        """Prompts and their reference."""
        return tuple(p + t for p, t in zip(self.prompts, self.reference[seed], strict=True))

    def run(self, plan: Plan, requests: Sequence[Request], batch: int, model: Model | None = None) -> list[Completion]:
        return generate(model or self.model, requests, plan, batch=batch, costs=FLAT, capacity=self.capacity)

    def open(self, batch: int = 1) -> Session:
        return self.model.open(batch, self.capacity, self.cache)

    def ids(self, count: int, *salt: int) -> list[int]:
        """`count` ids; another `salt`, other ids."""
        rng = np.random.default_rng([self.seeds[0] & 0xFFFFFFFF, *salt])
        return [int(i) for i in rng.integers(0, self.model.vocab, count)]


def perform(name: str, rule: Callable[[Lab], Found], lab: Lab) -> Check:
    """Run one check. Whatever goes wrong inside is a finding, never a traceback."""
    start = perf_counter()
    status, detail, found = Status.PASS, "", Found()
    try:
        found = rule(lab)
    except Skip as reason:
        status, detail = Status.SKIP, str(reason)
    except Broken as fault:
        status, detail = Status.FAIL, str(fault)
    except (StenoError, ValueError, IndexError, AssertionError, RuntimeError, KeyError, TypeError) as error:
        status, detail = Status.FAIL, f"{type(error).__name__}: {error}"
    text = " ".join((rule.__doc__ or "").split("\n\n")[0].split())
    return Check(
        name=name,
        rule=text,
        status=status,
        detail=detail,
        cases=found.cases,
        numbers=found.numbers,
        seconds=perf_counter() - start,
    )


def same(got: Floats, want: Floats, keeps: Keeps, where: str) -> float:
    """Compare logits [..., V]: bit for bit where `keeps` is bits, else within rounding. Returns the largest difference.

    Rounding is 0.1 % of the row's spread, and 10 % where logits are bfloat16 (their lower halves are zero). Infinite
    entries must be the same. Raises Broken.
    """
    if keeps is Keeps.BITS:
        unequal = _bits(got) != _bits(want) if got.shape == want.shape else np.ones(1, bool)
        if unequal.any():
            raise Broken(
                f"{where}: bits are promised, and {np.count_nonzero(unequal)} of {want.size} logits differ, by up to "
                f"{_distance(got, want):.3g}"
            )
        return 0.0
    finite = np.isfinite(want)
    spread = float(want[finite].std()) if finite.any() else 0.0
    coarse = not np.any(np.ascontiguousarray(want, np.float32).view(np.uint32) & 0xFFFF)
    limit = max(1e-5, (0.1 if coarse else 1e-3) * spread)
    apart = _distance(got, want)
    if not apart <= limit:
        raise Broken(f"{where}: logits differ by up to {apart:.3g}, rounding explains {limit:.2g}")
    return apart


def _bits(logits: Floats) -> npt.NDArray[np.uint32]:
    """The float32 patterns: as numbers 0 equals -0."""
    return np.ascontiguousarray(logits, np.float32).view(np.uint32)


def _distance(got: Floats, want: Floats) -> float:
    if got.shape != want.shape or np.isnan(got).any():
        return float("inf")
    unequal = got != want
    return float(np.abs(got[unequal].astype(np.float64) - want[unequal]).max()) if unequal.any() else 0.0


def forest(rows: Sequence[Forest], width: int = 0) -> Nodes:
    """Rows of (tokens, parents) as nodes, padded to the widest or to `width`."""
    width = max([width, 1, *(len(tokens) for tokens, _ in rows)])
    tokens = np.zeros((len(rows), width), np.int32)
    parents = np.full((len(rows), width), PAD, np.int32)
    for b, (row, up) in enumerate(rows):
        tokens[b, : len(row)] = row
        parents[b, : len(up)] = up
    return Nodes(tokens=tokens, parents=parents)


def chain(tokens: Sequence[int]) -> Forest:
    """A single path."""
    return list(tokens), list(range(ROOT, len(tokens) - 1))


def lineage(parents: Sequence[int], node: int) -> list[int]:
    """The path from the root to `node`; empty for ROOT."""
    path: list[int] = []
    while node != ROOT:
        path.append(node)
        node = parents[node]
    return path[::-1]
