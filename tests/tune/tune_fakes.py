"""Scripted knobs and a scripted lab: a search without a model and without a clock."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from steno.core import Card, Keeps, Knob, OneOf, Plan, Span
from steno.core.errors import KnobError
from steno.decode.base import Request
from steno.measure import Bytes, Fidelity
from steno.tune.journal import Lap, Out
from steno.tune.lab import Unit
from steno.tune.prompts import Task


@dataclass(frozen=True, kw_only=True)
class Quick(Knob):
    """Best at depth 16."""

    __module__ = "steno.decode.draft.quick"
    card: ClassVar[Card] = Card(keeps="tokens", breaks=("decode.draft",))
    depth: Annotated[int, Span(1, 64, "tokens")] = 4


@dataclass(frozen=True, kw_only=True)
class Slow(Knob):
    __module__ = "steno.decode.draft.slow"
    card: ClassVar[Card] = Card(keeps="tokens", breaks=("decode.draft",))


@dataclass(frozen=True, kw_only=True)
class Liar(Knob):
    """Promises tokens and changes them."""

    __module__ = "steno.decode.draft.liar"
    card: ClassVar[Card] = Card(keeps="tokens", breaks=("decode.draft",))


@dataclass(frozen=True, kw_only=True)
class Loose(Knob):
    __module__ = "steno.cache.loose"
    card: ClassVar[Card] = Card(keeps="near", backends=("hf",))
    bits: Annotated[int, OneOf(8, 4, 2)] = 4
    share: Annotated[float, Span(0.0, 1.0)] = 0.5
    on: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits == 2 and not self.on:
            raise KnobError("two bits need on")


SPEED = {"quick": lambda k: {4: 2.0, 8: 2.5, 16: 3.0}.get(k.depth, 1.5), "slow": lambda k: 0.7, "liar": lambda k: 9.0}


@dataclass
class Script:
    """A lab whose times and tokens are functions of the plan. `stop_after` measurements it is interrupted."""

    speeds: dict[str, Callable[..., float]] = field(default_factory=lambda: dict(SPEED))
    kl: float = 0.01
    seconds: float = 1.0
    stop_after: int = 10**9
    fail: str = ""
    peer: str = ""
    peer_version: str = "1"
    calls: list[str] = field(default_factory=list)

    def run(self, plan: Plan, unit: Unit) -> Lap:
        names = [k.name.rpartition(".")[2] for k in plan.knobs]
        self._count(",".join(names))
        if self.fail and self.fail in names:
            return Lap(error="it does not run")
        speed = 1.0
        for knob, name in zip(plan.knobs, names, strict=True):
            speed *= self.speeds.get(name, lambda k: 1.0)(knob)
        changed = "liar" in names or "loose" in names
        tokens = tuple(range(10)) if not changed else (*range(7), 99, 8, 9)
        # Prompts differ in difficulty, so that paired statistics have something to take out.
        wall = self.seconds * (1 + unit[0].request.number % 3) / speed
        outs = tuple(Out(tokens=tokens, finish="length", passes=5, drafted=10, accepted=5) for _ in unit)
        return Lap(prefill_s=0.1 * wall, decode_s=0.9 * wall, decoded=10 * len(unit), outs=outs)

    def run_peer(self, unit: Unit) -> Lap:
        self._count("peer")
        return Lap(prefill_s=1.0, decode_s=9.0, decoded=9, outs=tuple(Out(tokens=tuple(range(10))) for _ in unit))

    def fidelity(self, base: Plan, plan: Plan, texts: Sequence[Sequence[int]]) -> Fidelity:
        self._count("kl")
        loose = [k for k in plan.knobs if isinstance(k, Loose)]
        kl = self.kl * (8 / loose[0].bits if loose else 0)
        return Fidelity(
            texts=len(texts), tokens=10, exact=True, top=0, kl_mean=kl, kl_low=kl, kl_high=kl, kl_p50=kl, kl_p90=kl,
            kl_p99=kl, kl_max=kl, top1=0.9, unit="token", bits_base=1.0, bits_plan=1.0, bits_delta=0.0, bits_error=None,
        )  # fmt: skip

    def bytes(self, plan: Plan, ids: Sequence[int]) -> Bytes:
        return Bytes(weights=100, cache={"payload": 10 if plan.find("cache") else 50})

    def _count(self, what: str) -> None:
        if len(self.calls) >= self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(what)


def units(count: int, kinds: Sequence[str] = ("a", "b")) -> list[Unit]:
    return [
        (Task(name=f"p{i}", category=kinds[i % len(kinds)], text="", request=Request(number=i, prompt=(1, 2))),)
        for i in range(count)
    ]


def defaults(slot: str, backend: str, keep: Keeps) -> list[Knob]:
    """In place of `space._defaults`."""
    made = {"decode.draft": [Liar(), Quick(), Slow()], "cache": [Loose()]}.get(slot, [])
    return [k for k in made if backend in k.card.backends and Keeps(k.card.keeps).covers(keep)]
