"""The defining comparison of one method against its baseline, in one process, as evidence.

    decode.draft.*    plain and drafted decoding race: the same ids, and how much faster
    decode.search.*   the texts a search finds beside greedy decoding's: log-probability, variety, repetition, passes
    decode.shape.*    the same for the text that comes out, of those that name the settings to compare
    decode.search.pac   lines of code: how often a calibrated partial program holds the true one
    decode.search.set_prompting   the texts of prompts with lists, read in two orders
    decode.accept.*   both sides sample or choose by this acceptor, one with drafts: ids where ids are promised
    decode.schedule.* batches of rows that run as they come, and of rows chosen: the same ids, and how much faster
    cache.*           paired fidelity to a dense cache, real bits per value, and drafted == plain in the same cache
                      (pinned shapes)
    reuse.*           a text woven from known pieces beside the same text computed: time, fidelity of what follows
    weights.*         paired fidelity of the compressed folder to its source, real bits per weight

A verdict is one of four words: `holds`, `does not hold`, `measured` (nothing was promised), `not testable here`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import cast

import numpy as np

from steno.core import Keeps, Knob, Plan, knob_class, make_knob
from steno.core.errors import ModelError, PlanError
from steno.decode import Completion, generate
from steno.decode._holes import covers
from steno.decode._text import Decoder
from steno.decode.base import Candidate, ScorerKnob
from steno.decode.search.set_prompting import sections
from steno.measure import Fidelity, Speed
from steno.measure.base import Machine
from steno.measure.bytes import FAR, measure
from steno.measure.conform import verify
from steno.measure.coverage import at_most, calibrate
from steno.measure.fidelity import Side, fidelity
from steno.measure.machine import here
from steno.measure.speed import Race, plan_arm, race
from steno.models import ModelSpec, load

from ._likelihood import log_probs
from ._lines import line_examples
from ._reuse import compare
from .job import Subject, open_subject
from .prompts import Prompts, Task, prepare
from .space import changed

DRAFTER, SAMPLER = "decode.draft.lookup", "decode.shape.temperature"
"""Partners of methods that need one."""

FORMATS = {"cache": "hf", "reuse": "hf", "weights": "hf"}
"""Backends on which a room's methods can be compared with their baseline."""

TAUS = (0.0, *(0.01 * 1.25**step for step in range(40)))
"""Thresholds of partial programs, safest first, in nats."""

Row = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was claimed, what was measured, on what, and whether it holds. `table` has one row per arm."""

    name: str
    paper: str
    verdict: str
    claimed: str
    measured: str
    on: str
    table: tuple[Row, ...]
    plan: str
    machine: Machine


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What a comparison runs on. `points` are the method in the settings to compare, `knob` as it is by default;
    `judges` are scorers that texts are measured by.
    """

    knob: Knob
    points: tuple[Knob, ...]
    subject: Subject
    spec: ModelSpec
    tasks: tuple[Task, ...]
    judges: tuple[ScorerKnob, ...] = ()

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        return [task.request.prompt for task in self.tasks]

    @property
    def max_tokens(self) -> int:
        return max(task.request.max_tokens for task in self.tasks)


def bench(name: str, spec: ModelSpec, found: Prompts, settings: Plan = Plan(), *, max_tokens: int = 128) -> Evidence:
    """Run a method's comparison. `settings` may hold the method with other fields than its defaults, and scorers by
    which the texts that come out are to be measured beside those in the method's own fields.

    Raises KnobError for an unknown method, PlanError where it does not run on the backend, and model and prompt errors.
    """
    # Before a model is loaded: an unknown name is known at once.
    knob = next((k for k in settings.knobs if k.name == name), None) or knob_class(name)()
    room = name.partition(".")[0]
    if spec.backend == "auto" and room in FORMATS and not spec.source.startswith("table:"):
        # Pinned, so that a difference between drafted and plain decoding can only be the cache's doing.
        spec = replace(spec, backend=FORMATS[room], pinned=room == "cache")
    subject = open_subject(spec)
    model = subject.model
    if model.backend not in knob.card.backends:
        runs = ", ".join(knob.card.backends)
        raise PlanError(f"{name} does not run on the {model.backend} backend. Choose one with --backend: {runs}")
    tasks, _ = prepare(found, subject.tokenizer, model.vocab, model.context, max_tokens=max_tokens)
    given = any(k.name == name for k in settings.knobs)
    points = (knob,) if given else tuple(make_knob(name, dict(point)) for point in type(knob).points)
    asked = cast(tuple[ScorerKnob, ...], settings.find("decode.score"))
    own = [part for point in points for part in point.parts() if isinstance(part, ScorerKnob)]
    judges = tuple({judge.name: judge for judge in (*own, *asked)}.values())
    run = Bench(knob=knob, points=points, subject=subject, spec=spec, tasks=tasks, judges=judges)
    if not points:
        told = "What ships here lacks what it needs; its page says what that is."
        verdict, claimed, table = "not testable here", "", ()
    elif knob.card.task and "points" not in vars(type(knob)):
        verdict, claimed, told, table = "not testable here", "", "It says what is asked for, and promises nothing.", ()
    else:
        verdict, claimed, told, table = _COMPARISONS[_kind(name)](run)
    where = f"{model.name}, {model.backend} backend, {len(tasks)} prompts of {Path(found.source).name}"
    machine = here(threads=spec.threads, isa=str(getattr(model, "isa", "")))
    return Evidence(
        name=name,
        paper=knob.card.paper,
        verdict=verdict,
        claimed=claimed,
        measured=told,
        on=f"{where}, {machine.cpu}",
        table=tuple(table),
        plan=Plan((knob,)).to_toml() if given else "",
        machine=machine,
    )


Result = tuple[str, str, str, Sequence[Row]]


def _drafter(run: Bench) -> Result:
    plans = {"plain": Plan(), run.knob.name: Plan((run.knob,))}
    result, same, table = _race(run, plans)
    speed = result.speeds[1]
    told = f"the same ids on {same} of {len(run.tasks)} prompts, {_ratio(speed)} as fast as plain decoding"
    claimed = "the same token ids as plain decoding, in less time"
    if same < len(run.tasks):
        return "does not hold", claimed, told, table
    if run.subject.model.backend == "table":
        # Scripted logits cost the same alone as side by side: nothing can be gained, and nothing is shown.
        return "not testable here", claimed, told, table
    return ("holds" if speed.ratio_low > 1 else "does not hold"), claimed, told, table


def _acceptor(run: Bench) -> Result:
    drafter = make_knob(DRAFTER, {})
    keeps = Keeps(run.knob.card.keeps)
    task = () if keeps is Keeps.BITS else (make_knob(SAMPLER, {}),)
    plans = {"plain": Plan((*task, run.knob)), "with drafts": Plan((*task, run.knob, drafter))}
    result, same, table = _race(run, plans)
    told = f"drafts of {DRAFTER} make it {_ratio(result.speeds[1])} as fast"
    if not keeps.covers(Keeps.TOKENS):
        claimed = "the same output distribution with drafts as without"
        verdict = verify(run.subject.model, plans["with drafts"], prompts=run.prompts)
        checked = f"{len(verdict.checks) - len(verdict.failed)} of {len(verdict.checks)} checks of the conformance kit"
        return ("holds" if verdict.passed else "does not hold"), claimed, f"{checked}; {told}", table
    claimed = "the same token ids with drafts as without"
    told = f"the same ids on {same} of {len(run.tasks)} prompts, {told}"
    return ("holds" if same == len(run.tasks) else "does not hold"), claimed, told, table


def _search(run: Bench) -> Result:
    """Greedy decoding and the search at each of its points: what the model says of the texts, and how they differ."""
    told, table = _texts(run)
    if not run.judges:
        return "measured", "different texts, ranked by the search's own score", told, table
    judge = run.judges[0].name
    greedy, *others = (float(row[judge]) for row in table)
    verdict = "holds" if max(others) > greedy else "does not hold"
    return verdict, f"texts that {judge} puts above greedy decoding's", told, table


def _orders(run: Bench) -> Result:
    """Every prompt with the items of its lists as they stand and reversed, read as text and as sets."""
    tokenizer, table = run.subject.tokenizer, list[Row]()
    text = tokenizer.decode if tokenizer else None
    bullet = str(run.knob.settings()["bullet"])
    turned = [
        tuple(token for items in sections(prompt, bullet, text) for item in items[::-1] for token in item)
        for prompt in run.prompts
    ]
    pairs = [i for i, prompt in enumerate(run.prompts) if turned[i] != prompt]
    if not pairs:
        return "not testable here", "one text for every order of a list", "no prompt holds a list", table
    for name, plan in (("greedy", Plan()), (run.knob.name, Plan((run.knob,)))):
        asked = [replace(run.tasks[i].request, prompt=p) for i in pairs for p in (run.prompts[i], turned[i])]
        done = generate(run.subject.model, asked, plan, text=text)
        same = sum(one.tokens == two.tokens for one, two in zip(done[::2], done[1::2], strict=True))
        logs = [fmean(log_probs(run.subject.model, c.request.prompt, c.tokens)) for c in done]
        table.append(
            {"arm": name, "same text": f"{same} of {len(pairs)}", "log-probability per token": f"{fmean(logs):.4f}"}
        )
    told = "; ".join(f"{row['arm']}: the same text in both orders on {row['same text']} prompts" for row in table)
    whole = table[1]["same text"] == f"{len(pairs)} of {len(pairs)}"
    return ("holds" if whole else "does not hold"), "one text for every order of a list", told, table


def _sets(run: Bench) -> Result:
    """Lines of code the model wrote, half of them for calibration: how often the sets of the rest hold what is true."""
    tokenizer, table = run.subject.tokenizer, list[Row]()
    claimed = "with confidence 0.95 the true line is missed with probability epsilon at most"
    if tokenizer is None:
        return "not testable here", claimed, "the model has no tokenizer", table
    some = list(line_examples(run.subject.model, tokenizer, run.prompts))
    order = np.random.default_rng(0).permutation(len(some))
    first, rest = ([some[i] for i in order[part::2]] for part in (0, 1))
    most = int(cast(int, run.knob.settings()["holes"]))
    kept = True
    for epsilon in (0.1, 0.2, 0.4):
        tau = calibrate(first, TAUS, epsilon=epsilon, delta=0.05, holes=most)
        row = {"epsilon": f"{epsilon}", "tau": "none", "missed": "-", "left out": "-", "greedy is right": "-"}
        if tau is not None:
            misses = sum(not example.covered(tau, most) for example in rest)
            # So many misses or more would come by chance as often as this.
            kept &= 1 - at_most(misses - 1, len(rest), epsilon) > 0.05 if misses else True
            right = sum(covers(example.code, (), example.truth) for example in rest)
            row |= {
                "tau": f"{tau:.3g}",
                "missed": f"{misses} of {len(rest)}",
                "left out": f"{100 * fmean(example.open_share(tau, most) for example in rest):.1f} %",
                "greedy is right": f"{right} of {len(rest)}",
            }
        table.append(row)
    told = "; ".join(", ".join(f"{key} {value}" for key, value in row.items()) for row in table)
    return ("holds" if kept else "does not hold"), claimed, f"{len(first)} lines for calibration: {told}", table


def _shaper(run: Bench) -> Result:
    """Greedy decoding with and without the shaper."""
    return "measured", "another text than the likeliest next tokens make", *_texts(run)


def _texts(run: Bench) -> tuple[str, list[Row]]:
    model, tokenizer = run.subject.model, run.subject.tokenizer
    table: list[Row] = []
    told: list[str] = []
    text = tokenizer.decode if tokenizer else None
    for knob in (None, *run.points):
        name = _label(Plan((knob,))) if knob else "greedy"
        plan = Plan((knob,)) if knob else Plan()
        done = [c for c in generate(model, [task.request for task in run.tasks], plan, text=text) if c.tokens]
        logs = [log_probs(model, c.request.prompt, c.tokens) for c in done]
        best = [fmean(of_text) for of_text in logs]
        row = {
            "arm": name,
            "log-probability per token": f"{fmean(best):.4f}",
            "texts": f"{fmean(max(len(c.found), 1) for c in done):.1f}",
            "distinct bigrams": f"{fmean(_distinct([h.tokens for h in c.found] or [c.tokens]) for c in done):.0f}",
            "repeated 4-grams": f"{100 * fmean(_repeated(c.tokens) for c in done):.1f} %",
            "tokens": f"{fmean(len(c.tokens) for c in done):.1f}",
            "passes per token": f"{sum(c.stats.passes for c in done) / sum(len(c.tokens) for c in done):.2f}",
        }
        for judge in run.judges:
            judged = [
                judge.score(_candidate(c, of_text, model.eos, text)) for c, of_text in zip(done, logs, strict=True)
            ]
            row[judge.name] = f"{fmean(judged):.3f}"
        table.append(row)
        told.append(
            f"{name}: {row['log-probability per token']} nats per token of the best text, "
            f"{row['texts']} texts with {row['distinct bigrams']} different bigrams, {row['repeated 4-grams']} of the "
            f"best one's 4-grams repeated, {row['tokens']} tokens, {row['passes per token']} passes per token of it"
            + "".join(f", {judge.name} {row[judge.name]}" for judge in run.judges)
        )
    return "; ".join(told), table


def _candidate(done: Completion, logs: Sequence[float], ends: frozenset[int], text: Decoder | None) -> Candidate:
    return Candidate(prompt=done.request.prompt, tokens=done.tokens, logs=tuple(logs), whole=True, ends=ends, text=text)


def _distinct(texts: Sequence[Sequence[int]]) -> int:
    """Different bigrams in all texts together."""
    return len({pair for text in texts for pair in pairwise(text)})


def _repeated(text: Sequence[int]) -> float:
    """The share of a text's 4-grams that stood in it before."""
    grams = [tuple(text[i : i + 4]) for i in range(len(text) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _cache(run: Bench) -> Result:
    subject = run.subject
    plain, _, _ = _race(run, {"plain": Plan()}, repeats=1)
    texts = [(*p, *plain.tokens(0, i)) for i, p in enumerate(run.prompts)]
    longest = max(texts, key=len)
    table: list[Row] = [{**_held(run, Plan(), longest), "KL per token": "0", "same first choice": "100 %", SAME: "-"}]
    told: list[str] = []
    exact = True
    for knob in run.points:
        plan = Plan((knob,))
        found = fidelity(Side(subject.model), Side(subject.model, plan), texts, tokenizer=subject.tokenizer)
        _, same, _ = _race(run, {"a": plan, "b": plan.with_knobs(make_knob(DRAFTER, {}))}, repeats=1)
        exact &= same == len(run.tasks)
        row = {**_held(run, plan, longest), **_fidelity_cells(found), SAME: f"{same} of {len(run.tasks)}"}
        table.append(row)
        told.append(f"{row['cache']}: {row['bits per value']} bits per value with metadata, {_told(found)}")
    drafts = "drafted and plain decoding in each cache gave the same ids on " + (
        "every prompt" if exact else "some only"
    )
    claimed = "a smaller cache; drafts change nothing that the cache did not"
    return ("measured" if exact else "does not hold"), claimed, f"{'; '.join(told)}; {drafts}", table


SAME = "drafted = plain"


def _held(run: Bench, plan: Plan, text: tuple[int, ...]) -> Row:
    """What a cache holds after `text`, read from its storages."""
    held = measure(run.subject.model, plan, [text], run.subject.folder)
    bits = "-" if held.bits_per_value is None else f"{held.bits_per_value:.2f}"
    far = held.cache.get(FAR, 0)
    size = f"{held.cache_total - far:,}" + (f" and {far:,} far" if far else "")
    return {"cache": _label(plan), "bits per value": bits, "bytes": f"{size} for {len(text):,} tokens"}


def _label(plan: Plan) -> str:
    """A plan's only knob in full, with the fields that are not its defaults."""
    return " ".join([plan.knobs[0].name, *changed(plan.knobs[0])]) if plan.knobs else "dense"


def _weights(run: Bench) -> Result:
    from steno.weights import WeightsKnob

    subject = run.subject
    if subject.folder is None:
        raise ModelError("weights methods need a model folder. Name one with --model.")
    texts = [p for p in run.prompts if len(p) > 1]
    table: list[Row] = []
    told: list[str] = []
    for knob in run.points:
        name = _label(Plan((knob,)))
        with TemporaryDirectory() as scratch:
            out = Path(scratch) / "model"
            try:
                ledger = cast(WeightsKnob, knob).apply(subject.folder, out, calibration=run.prompts)
            except ModelError as error:
                # Not every setting fits every shape; alone, the refusal is the answer.
                if len(run.points) == 1:
                    raise
                told.append(f"{name}: refused ({error})".replace(f"{subject.folder}: ", ""))
                continue
            other = load(replace(run.spec, source=str(out), backend=subject.model.backend))
            found = fidelity(Side(subject.model), Side(other), texts, tokenizer=subject.tokenizer)
        bits = f"{ledger.bits_per_weight:.2f}"
        size = {"safetensors bytes": f"{ledger.total_bytes:,}", "source bytes": f"{ledger.source_bytes:,}"}
        table.append({"model": name, "bits per weight": bits, **size, **_fidelity_cells(found)})
        told.append(f"{name}: {bits} bits per compressed weight with metadata, {_told(found)}")
    return "measured", "smaller parameters", "; ".join(told), table


def _reuse(run: Bench) -> Result:
    from steno.reuse import ReuseKnob

    knobs = [(_label(Plan((knob,))), cast(ReuseKnob, knob)) for knob in run.points]
    return compare(run.subject.model, knobs, run.prompts)


ROWS, ROUNDS = 4, 3
"""Texts of a step under a schedule, and interleaved rounds of the comparison."""


def _schedule(run: Bench) -> Result:
    """A batch in which any rows run together, and the same under the schedule at each of its points."""
    model, drafter = run.subject.model, make_knob(DRAFTER, {})
    plans = {"ragged": Plan((drafter,))} | {_label(Plan((knob,))): Plan((drafter, knob)) for knob in run.points}
    tasks = [*run.tasks, *run.tasks]
    requests = [replace(task.request, number=number) for number, task in enumerate(tasks)]
    capacity = min(model.context, max(map(len, run.prompts)) + run.max_tokens)
    seconds: dict[str, list[float]] = {name: [] for name in plans}
    texts: dict[str, list[tuple[int, ...]]] = {}
    passes: dict[str, float] = {}
    for _ in range(ROUNDS):
        for name, plan in plans.items():
            start = perf_counter()
            done = generate(model, requests, plan, batch=ROWS, capacity=capacity)
            seconds[name].append(perf_counter() - start)
            texts[name] = [completion.tokens for completion in done]
            passes[name] = sum(c.stats.passes for c in done) / sum(len(c.tokens) for c in done)
    table: list[Row] = []
    ratios: dict[str, float] = {}
    for name in plans:
        ratios[name] = median(one / two for one, two in zip(seconds["ragged"], seconds[name], strict=True))
        same = sum(one == two for one, two in zip(texts["ragged"], texts[name], strict=True))
        rate = sum(map(len, texts[name])) / median(seconds[name])
        table.append(
            {
                "schedule": name,
                "tokens/s": f"{rate:,.0f}",
                "over ragged": f"{ratios[name]:.2f}x",
                "passes per token": f"{passes[name]:.2f}",
                "identical": f"{same}/{len(requests)}",
            }
        )
    whole = all(found == texts["ragged"] for found in texts.values())
    told = ", ".join(f"{row['schedule']} {row['over ragged']}" for row in table[1:])
    told = f"{told} of a ragged batch of {ROWS} with {DRAFTER}; all ids {'the same' if whole else 'NOT the same'}"
    claimed = "the same token ids as any batch, in less time than a ragged one"
    own = seconds[_label(Plan((run.knob,)))]
    gains = all(two < one for one, two in zip(seconds["ragged"], own, strict=True))
    return ("holds" if whole and gains else "does not hold"), claimed, told, table


_COMPARISONS = {
    "decode.schedule": _schedule,
    "decode.draft": _drafter,
    "decode.accept": _acceptor,
    "decode.search.pac": _sets,
    "decode.search.set_prompting": _orders,
    "decode.search": _search,
    "decode.shape": _shaper,
    "cache": _cache,
    "reuse": _reuse,
    "weights": _weights,
}


def _kind(name: str) -> str:
    for kind in _COMPARISONS:
        if name == kind or name.startswith(kind + "."):
            return kind
    raise PlanError(f"there is no comparison for {name} yet. These rooms have one: {', '.join(_COMPARISONS)}")


def _race(run: Bench, plans: dict[str, Plan], repeats: int = 3) -> tuple[Race, int, list[Row]]:
    """Race plans; also the prompts on which all gave the ids of the first, and a row for each."""
    model = run.subject.model
    capacity = min(model.context, max(map(len, run.prompts)) + run.max_tokens)
    arms = [plan_arm(name, model, plan, capacity=capacity) for name, plan in plans.items()]
    result = race(arms, run.prompts, max_tokens=run.max_tokens, repeats=repeats)
    whole = range(len(run.prompts))
    same = sum(all(result.tokens(a, p) == result.tokens(0, p) for a in range(len(arms))) for p in whole)
    rows: list[Row] = []
    for arm, speed in enumerate(result.speeds):
        done = [c for p in whole if (c := result.passes[arm][p][0].completion)]
        passes = sum(c.stats.passes for c in done)
        rows.append(
            {
                "arm": speed.name,
                "tokens/s": f"{speed.tokens_per_s:,.1f}",
                "ratio": f"{speed.ratio:.2f}",
                "95 %": f"{speed.ratio_low:.2f} to {speed.ratio_high:.2f}",
                "tokens per pass": f"{speed.tokens / passes:.2f}" if passes else "-",
            }
        )
    return result, same, rows


def _ratio(speed: Speed) -> str:
    return f"{speed.ratio:.2f} times ({speed.ratio_low:.2f} to {speed.ratio_high:.2f})"


def _told(found: Fidelity) -> str:
    return (
        f"KL {found.kl_mean:.3g} nats per token (99th percentile {found.kl_p99:.3g}), "
        f"the same first choice on {100 * found.top1:.2f} %"
    )


def _fidelity_cells(found: Fidelity) -> Row:
    return {"KL per token": f"{found.kl_mean:.3g}", "same first choice": f"{100 * found.top1:.2f} %"}
