"""Candidate plans from the index: a new method is searched the day its file is there.

`seeds` crosses the methods at their defaults; `neighbours` changes one field of a plan by one step, whose size follows
from the field's declared range. Nothing here knows a method by name.
"""

from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from typing import Annotated, cast, get_args, get_origin, get_type_hints

from steno.core import Keeps, Knob, OneOf, Plan, Span, Value, knob_class, methods
from steno.core.errors import KnobError, MissingExtra

SLOTS = ("decode.draft", "decode.accept", "cache")
"""Rooms a candidate takes at most one knob from. Weights change the model itself: they are chosen before tuning."""

ACCEPTORS, SAMPLES = "decode.accept", "decode.shape.temperature"
"""A task without a temperature is greedy, and greedy acceptance is what the loop does by itself."""


def seeds(base: Plan, backend: str, keep: Keeps) -> list[Plan]:
    """Plans that add at least one knob to `base`, fit together on `backend` and keep at least `keep`.

    A slot that `base` fills already stays as it is. The order is fixed: by slot, then by name.
    """
    plans = [base]
    for slot in SLOTS:
        if base.find(slot) or (slot == ACCEPTORS and not base.find(SAMPLES)):
            continue
        knobs = _defaults(slot, backend, keep)
        plans += [plan.with_knobs(knob) for plan in plans for knob in knobs]
    return [p for p in plans if p != base and _useful(p) and p.keeps.covers(keep) and not p.clashes(backend)]


def neighbours(plan: Plan, base: Plan, backend: str, keep: Keeps) -> list[Plan]:
    """Plans one step away: one field of one knob that `base` did not fix, raised, lowered or switched."""
    fixed = {knob.name for knob in base.knobs}
    out: list[Plan] = []
    for knob in plan.knobs:
        if knob.name in fixed:
            continue
        for other in variants(knob):
            changed = plan.with_knobs(other)
            if changed not in out and changed.keeps.covers(keep) and not changed.clashes(backend):
                out.append(changed)
    return out


def variants(knob: Knob) -> Iterator[Knob]:
    """The knob with one field one step away, field by field, fields of nested knobs included.

    Steps that break a rule of the method are left out.
    """
    hints = get_type_hints(type(knob), include_extras=True)
    settings = knob.settings()
    for field in fields(knob):
        held = getattr(knob, field.name)
        if isinstance(held, Knob):
            steps: list[Value] = [{"name": other.name, **other.settings()} for other in variants(held)]
        else:
            steps = _steps(settings[field.name], hints[field.name])
        for value in steps:
            try:
                yield type(knob).build({**settings, field.name: value})
            except KnobError:
                continue


def label(plan: Plan) -> str:
    """A short name: knobs by their last word, with the fields that differ from the defaults; `plain` for none.

    >>> label(Plan())
    'plain'
    """
    return " + ".join(_label(knob) for knob in plan.knobs if not knob.card.task) or "plain"


def changed(knob: Knob) -> list[str]:
    """`field=value` for the fields that are not at their defaults."""
    out: list[str] = []
    for field in fields(knob):
        value = getattr(knob, field.name)
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if value != default:
            out.append(f"{field.name}={_label(value) if isinstance(value, Knob) else _show(value)}")
    return out


def _label(knob: Knob) -> str:
    short, words = knob.name.rpartition(".")[2], changed(knob)
    return f"{short}({', '.join(words)})" if words else short


def _show(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _defaults(slot: str, backend: str, keep: Keeps) -> list[Knob]:
    out: list[Knob] = []
    for name, entry in sorted(methods().items()):
        card = entry["card"]
        fits = backend in cast(Sequence[str], card.get("backends", (backend,)))
        if not name.startswith(slot + ".") or card.get("task") or not fits:
            continue
        promise = Keeps(str(card.get("keeps", "near")))
        # A cache form that keeps the bits is what plain decoding has already; an acceptor that keeps them is greedy.
        if not promise.covers(keep) or (slot != "decode.draft" and promise is Keeps.BITS):
            continue
        try:
            knob = knob_class(name)()
        except (KnobError, MissingExtra, TypeError):
            # A method with a field that has no default is used only when the user names it.
            continue
        if knob.complete:
            out.append(knob)
    return out


def _useful(plan: Plan) -> bool:
    """An acceptor without a drafter decides nothing."""
    return bool(plan.find("decode.draft")) or not plan.find("decode.accept")


def _steps(value: Value, hint: object) -> list[Value]:
    """Values one step from `value`: doubled and halved within a range, all others of a closed set."""
    bare, rules = (get_args(hint)[0], get_args(hint)[1:]) if get_origin(hint) is Annotated else (hint, ())
    if isinstance(value, bool) or bare is bool:
        return [not value]
    for rule in rules:
        if isinstance(rule, OneOf):
            return [v for v in rule.values if v != value]
        if isinstance(rule, Span) and isinstance(value, int | float):
            return _near(value, rule)
    return []


def _near(value: int | float, span: Span) -> list[Value]:
    whole = isinstance(value, int)
    step = 1 if whole else (span.high - span.low) / 10
    raised = value * 2 if value > 0 else value + step
    lowered = value / 2 if value > 0 else value - step
    moved = [min(max(v, span.low), span.high) for v in (raised, lowered)]
    out: list[Value] = [int(v) if whole else float(f"{v:.6g}") for v in moved]
    return [v for v in dict.fromkeys(out) if v != value]
