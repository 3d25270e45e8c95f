"""Replaying the workload: steno by its own loop and a plan that its own search found, llama.cpp token by token."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from steno.cache.half import Half
from steno.core import Keeps, Plan
from steno.decode.base import Request
from steno.decode.loop import Loop
from steno.measure.replay import Recording, Replayed
from steno.tune.journal import Journal, Lap
from steno.tune.lab import ModelLab, Unit
from steno.tune.prompts import Task
from steno.tune.search import Goal, Search

from .ngram import Lookup

if TYPE_CHECKING:
    from .engine_llama import Llama
    from .engines import Steno

CAPACITY = 6400
LOOKUPS = ((2, 4), (2, 8), (3, 4), (3, 8), (3, 16))
"""Settings of the peer's prompt lookup, of which it races with the best on the calibration texts."""


@dataclass
class Tally:
    """One conversation, or several: tokens, seconds of decoding, forwards, tokens drafted and accepted."""

    tokens: int = 0
    seconds: float = 0.0
    passes: int = 0
    drafted: int = 0
    accepted: int = 0

    def add(self, other: "Tally") -> None:
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


class DecodingLab(ModelLab):
    """Counts decoding alone: what one plan had to read of a prompt is there for the next, whichever comes first."""

    def run(self, plan: Plan, unit: Unit) -> Lap:
        return replace(super().run(plan, unit), prefill_s=0.0)


class StenoReplay:
    """A plan has a loop of its own that lives as long as the race: drafters remember earlier outputs."""

    def __init__(self, engine: "Steno", recordings: Sequence[Recording]) -> None:
        # llama.cpp keeps keys and values in float16: so does steno here.
        self.model = Replayed(engine.model, recordings, Half())
        self.by_name = {r.name: r for r in recordings}
        self._loops: dict[str, Loop] = {}

    def tune(self, recordings: Sequence[Recording], seconds: float) -> str:
        """The plan that steno's own search finds on calibration texts, as TOML."""
        units = [(Task(name=r.name, category="", text="", request=request(i, r)),) for i, r in enumerate(recordings)]
        search = Search(
            lab=DecodingLab(self.model, None, CAPACITY),
            journal=Journal.begin(None, {}),
            units=units,
            base=Plan(),
            goal=Goal(keep=Keeps.TOKENS, seconds=seconds),
            backend=self.model.backend,
        )
        found = search.run()
        best = found.baseline if found.best is None else found.trials[found.best]
        return best.plan

    def run(self, plan: str, names: Sequence[str]) -> Tally:
        """Replay recordings, in order, under a plan (TOML)."""
        loop = self._loops.get(plan)
        if loop is None:
            loop = self._loops[plan] = Loop(self.model, Plan.from_toml(plan), capacity=CAPACITY)
        tally = Tally()
        for i, name in enumerate(names):
            recording = self.by_name[name]
            ticket = loop.submit(request(i, recording))
            for _ in loop:
                pass
            done = loop.completed.pop(ticket)
            if done.tokens != recording.output:
                raise AssertionError(f"the replay of {name} left its recording")
            stats = done.stats
            tally.add(Tally(len(done.tokens), stats.decode_s, stats.passes, stats.drafted, stats.accepted))
        return tally


class LlamaReplay:
    """The same texts through llama.cpp: the model is asked for every token, and the recorded one is taken."""

    def __init__(self, engine: "Llama", recordings: Sequence[Recording]) -> None:
        self.engine = engine
        self.by_name = {r.name: r for r in recordings}
        self.engine.open(1, CAPACITY)
        self._held: list[int] = []

    def tune(self, recordings: Sequence[Recording]) -> tuple[int, int]:
        """The fastest of `LOOKUPS` on calibration texts."""
        names = [r.name for r in recordings]
        rates = {}
        for setting in LOOKUPS:
            tally = self.run(setting, names)
            rates[setting] = tally.tokens / tally.seconds
        return max(rates, key=lambda s: rates[s])

    def run(self, setting: tuple[int, int] | None, names: Sequence[str]) -> Tally:
        """Replay recordings: plainly, or with prompt lookup of a setting (longest n-gram, tokens drafted)."""
        tally = Tally()
        for name in names:
            recording = self.by_name[name]
            self._fill(recording.prompt[:-1])
            one = self._plain(recording) if setting is None else self._drafted(recording, Lookup(*setting))
            self._held = [*recording.prompt, *recording.output][:-1]
            tally.add(one)
        return tally

    def _fill(self, ids: Sequence[int]) -> None:
        """Hold `ids`, keeping what is shared with what is held."""
        same = 0
        while same < min(len(ids) - 1, len(self._held)) and ids[same] == self._held[same]:
            same += 1
        self.engine.remove(same)
        for at in range(same, len(ids), 512):
            self.engine.run(ids[at : at + 512], at)

    def _plain(self, recording: Recording) -> Tally:
        engine, text, at = self.engine, [recording.prompt[-1], *recording.output], len(recording.prompt) - 1
        start = time.perf_counter()
        for i in range(len(recording.output)):
            engine.run(text[i : i + 1], at + i)
            engine.best(0)
        return Tally(len(recording.output), time.perf_counter() - start, len(recording.output))

    def _drafted(self, recording: Recording, lookup: Lookup) -> Tally:
        engine, output = self.engine, recording.output
        tally = Tally(tokens=len(output))
        lookup.start(recording.prompt)
        at, done = len(recording.prompt) - 1, 0
        start = time.perf_counter()
        while done < len(output):
            draft = lookup.propose()[: len(output) - done - 1]
            engine.run([lookup.text[-1], *draft], at + done, every=True)
            taken = 0
            engine.best(0)
            while taken < len(draft) and draft[taken] == output[done + taken]:
                taken += 1
                engine.best(taken)
            lookup.extend(output[done : done + taken + 1])
            done += taken + 1
            if taken < len(draft):
                engine.remove(at + done)
            tally.passes += 1
            tally.drafted += len(draft)
            tally.accepted += taken
        tally.seconds = time.perf_counter() - start
        return tally


def request(number: int, recording: Recording) -> Request:
    """The recording as a request of the loop."""
    return Request(number=number, prompt=recording.prompt, max_tokens=len(recording.output), ignore_eos=True)
