"""A whole tuning: model and prompts in, plan.toml, report.html and run.json out, a journal beside them for --resume."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path

from steno import __version__
from steno.core import Model, Plan
from steno.core.errors import OutputError, StenoError
from steno.core.files import write_text
from steno.measure import Fidelity, Outcome, Run, report, to_json
from steno.measure.machine import here, usable_cores
from steno.measure.speed import Arm
from steno.models import ModelSpec, load, locate
from steno.tokens import Tokenizer

from .journal import Journal
from .lab import ModelLab, Unit
from .prompts import Prompts, Task, prepare
from .search import Found, Goal, Progress, Search

JOURNAL, PLAN, REPORT, RUN = "journal.jsonl", "plan.toml", "report.html", "run.json"
OURS = (JOURNAL, PLAN, REPORT, RUN)

CROSS_TEXTS = 6
CROSS_LENGTH = 384
CROSS_BYTES = 4 * 10**9
"""The comparison between backends: texts, their length, and the largest model that is loaded a second time for it."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is asked for.

    base    knobs that every candidate carries; those that say what is asked for (temperature) are in the baseline too
    source  where the prompts came from, for the report
    batch   prompts that run together
    """

    spec: ModelSpec
    prompts: Prompts
    source: str
    goal: Goal
    out: Path
    base: Plan = Plan()
    max_tokens: int = 128
    batch: int = 1
    resume: bool = False
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A loaded model and its tokenizer; table models have none, and no folder."""

    model: Model
    tokenizer: Tokenizer | None
    folder: Path | None


def open_subject(spec: ModelSpec) -> Subject:
    """Load a model and its tokenizer. Raises ModelError, MissingExtra."""
    if spec.source.startswith("table:") or spec.backend == "table":
        return Subject(model=load(spec), tokenizer=None, folder=None)
    from steno.tokens import load as load_tokenizer

    folder = locate(spec.source)
    tokenizer = load_tokenizer(folder)
    return Subject(model=load(spec), tokenizer=tokenizer, folder=folder)


def tune(
    order: Order, *, watch: Callable[[Progress], None] = lambda p: None, say: Callable[[str], None] = lambda s: None
) -> Run:
    """Search, and write the results. `say` gets sentences for the user, `watch` the progress.

    Raises OutputError before anything is loaded where `out` is taken, and every error of model, plan and prompts.
    """
    check_out(order.out, resume=order.resume, force=order.force)
    order.base.check(keep=order.goal.keep)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    subject = open_subject(order.spec)
    model = subject.model
    order.base.check(model.backend, order.goal.keep)
    tasks, problems = prepare(
        order.prompts,
        subject.tokenizer,
        model.vocab,
        model.context,
        max_tokens=order.max_tokens,
        seed=order.goal.seed,
    )
    for problem in problems:
        say(f"left out: {problem}")
    if problems:
        say(f"{len(problems)} left out, {len(tasks)} to run")
    arm, notes = _peer(order, subject)
    units = [tuple(tasks[i : i + order.batch]) for i in range(0, len(tasks), order.batch)]
    capacity = max(len(t.request.prompt) + t.request.max_tokens for t in tasks)
    lab = ModelLab(model, subject.tokenizer, min(model.context, capacity), arm)
    journal = _journal(order, model, units)
    search = Search(
        lab=lab,
        journal=journal,
        units=units,
        base=order.base,
        goal=order.goal,
        backend=model.backend,
        watch=watch,
    )
    found = search.run()
    notes += _drift(order, model, found)
    notes += _across(order, subject, found, journal, tasks) if arm else []
    run = _run(order, model, found, [*notes], started)
    best = run.baseline if run.best is None else run.trials[run.best]
    write_text(order.out / RUN, to_json(run) + "\n")
    write_text(order.out / PLAN, best.plan)
    report.write(run, order.out / REPORT)
    return run


def check_out(out: Path, *, resume: bool, force: bool) -> None:
    """Raise OutputError where `out` is no folder, or holds a tuning and neither --resume nor --force is given."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file. Name a folder with --out.")
    held = [name for name in OURS if (out / name).exists()]
    if resume and JOURNAL not in held:
        raise OutputError(f"there is no search to resume in {out}. Start one without --resume.")
    if held and not resume and not force:
        raise OutputError(f"{out} holds a tuning already. Go on with it by --resume, or replace it with --force.")


def _journal(order: Order, model: Model, units: Sequence[Unit]) -> Journal:
    """The journal, with everything that a measurement depends on as its identity."""
    asked = [(t.name, t.category, t.request.prompt, t.request.max_tokens) for unit in units for t in unit]
    identity = {
        "model": model.fingerprint,
        "prompts": blake2b(json.dumps(asked).encode(), digest_size=16).hexdigest(),
        "plan": blake2b(order.base.to_toml().encode(), digest_size=16).hexdigest(),
        "--keep": order.goal.keep.value,
        "--max-kl": str(order.goal.max_kl),
        "--max-bytes": str(order.goal.max_bytes),
        "--batch": str(order.batch),
        "--seed": str(order.goal.seed),
        "backend": f"{model.backend}, {order.spec.threads} threads, pinned {order.spec.pinned}",
        "steno version": __version__,
    }
    path = order.out / JOURNAL
    return Journal.resume(path, identity) if order.resume else Journal.begin(path, identity)


def _peer(order: Order, subject: Subject) -> tuple[Arm | None, list[str]]:
    """Stock transformers on the same folder, or a note why it is not measured."""
    if subject.folder is None:
        return None, []
    if find_spec("transformers") is None or find_spec("torch") is None:
        return None, ["transformers is not installed, so it was not measured beside: pip install 'steno[hf]'"]
    if order.base.task().knobs:
        return None, [
            "transformers was not measured beside: it would be asked for something else than the plan's task."
        ]
    if order.spec.device == "cuda":
        return None, ["transformers was not measured beside: it runs on the CPU here, the model on the accelerator."]
    from transformers.utils import logging as chatter

    from steno.measure.peers import transformers_generate

    chatter.disable_progress_bar()
    try:
        return transformers_generate(subject.folder, threads=order.spec.threads or usable_cores()), []
    except StenoError as error:
        return None, [f"transformers was not measured beside: {error}"]


def _drift(order: Order, model: Model, found: Found) -> list[str]:
    """Why drafts may change ids although every method kept its word."""
    changed = any(t.outcome is Outcome.CHANGED for t in found.trials)
    if not changed or model.backend != "hf" or order.spec.pinned:
        return []
    return [
        "The hf backend computes drafted tokens in other shapes than single ones, and rounding can turn a close "
        "choice. "
        "With --pinned shapes are fixed, and both are bit-equal."
    ]


def _across(order: Order, subject: Subject, found: Found, journal: Journal, tasks: Sequence[Task]) -> list[str]:
    """What the backend itself changes: its predictions against those of transformers in fp32, on the same ids."""
    notes: list[str] = []
    if found.peer is not None:
        same, count = found.peer.identical, found.peer.compared
        why = "" if same == count else ": greedy choices are sensitive to arithmetic and to the weights' form"
        notes.append(
            f"Plain decoding here ({subject.model.backend}) and transformers' generate give the same ids on {same} of "
            f"{count} prompts{why}."
        )
    if subject.model.backend == "hf" or subject.model.weight_bytes() > CROSS_BYTES:
        return notes
    key = "kl to transformers fp32"
    known = journal.get(key, Fidelity)
    try:
        gap = known[0] if known else _gap(order, subject, tasks)
    except StenoError as error:
        return [*notes, f"The difference to transformers was not measured: {error}"]
    if known is None:
        journal.put(key, gap, 0.0)
    form = getattr(subject.model, "weights", order.spec.weights)
    notes.append(
        f"{subject.model.backend} {form} against transformers fp32, teacher-forced on {gap.texts} prompts "
        f"({gap.tokens} tokens): KL {gap.kl_mean:.2g} nats per token on average, {gap.kl_p50:.2g} median, "
        f"{gap.kl_p99:.2g} at the 99th percentile; the same first choice on {100 * gap.top1:.2f} %."
    )
    return notes


def _gap(order: Order, subject: Subject, tasks: Sequence[Task]) -> Fidelity:
    from steno.measure.fidelity import Side, fidelity

    other = load(replace(order.spec, backend="hf", weights="fp32", device="cpu"))
    prompts = [t.request.prompt[:CROSS_LENGTH] for t in tasks if len(t.request.prompt) > 1]
    # The longest say most: every token of a text is one comparison.
    texts = sorted(prompts, key=len, reverse=True)[:CROSS_TEXTS]
    return fidelity(Side(other), Side(subject.model), texts, tokenizer=subject.tokenizer)


def _run(order: Order, model: Model, found: Found, notes: Sequence[str], started: str) -> Run:
    return Run(
        model=model.name,
        backend=model.backend,
        weights=str(getattr(model, "weights", order.spec.weights)),
        fingerprint=model.fingerprint,
        keep=order.goal.keep,
        prompts=order.source,
        num_prompts=found.num_prompts,
        max_tokens=order.max_tokens,
        seed=order.goal.seed,
        machine=here(threads=order.spec.threads, isa=str(getattr(model, "isa", ""))),
        baseline=found.baseline,
        peers=(found.peer,) if found.peer else (),
        trials=found.trials,
        best=found.best,
        started=started,
        seconds=found.seconds,
        notes=(*found.notes, *notes),
    )
