"""Options that several verbs share, and the records they become."""

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING

import click

from steno.core.errors import PlanError, UserError, nearest

if TYPE_CHECKING:
    from steno.core import Plan

DEVICES = ("auto", "cpu", "cuda")

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
force_option = click.option("--force", is_flag=True, help="Overwrite what is there.")
set_option = click.option(
    "--set", "sets", multiple=True, metavar="KNOB.FIELD=VALUE", help="Set a field of a knob; repeatable."
)

Verb = Callable[..., None]


def model_options(function: Verb) -> Verb:
    """MODEL, --backend, --weights, --threads, --device and --pinned, handed to the verb as `spec`."""
    return _model(function, click.argument("model"))


def named_model_options(function: Verb) -> Verb:
    """The same for verbs whose argument is another: --model, which is nib where it is not given."""
    return _model(function, click.option("--model", default="nib", metavar="MODEL", help="A folder, hub id or nib."))


def _model(function: Verb, source: Callable[[Verb], Verb]) -> Verb:

    @wraps(function)
    def verb(
        *, model: str, backend: str, weights: str, threads: int, device: str, pinned: bool, **rest: object
    ) -> None:
        from steno.models import ModelSpec

        if device not in DEVICES:
            raise UserError(f"there is no device '{device}'. {nearest(device, DEVICES)}")
        spec = ModelSpec(source=model, backend=backend, weights=weights, threads=threads, device=device, pinned=pinned)
        function(spec=spec, **rest)

    return _decorate(
        verb,
        source,
        click.option("--backend", default="auto", metavar="NAME", help="auto, native, hf or table."),
        click.option("--weights", default="auto", metavar="FORM", help="auto, fp32, bf16 or int8."),
        click.option(
            "--threads", default=0, type=click.IntRange(0, 1024), help="Compute threads; 0: all usable cores."
        ),
        click.option("--device", default="auto", metavar="NAME", help="hf: auto, cpu or cuda."),
        click.option("--pinned", is_flag=True, help="hf: fixed shapes, bit-equal with and without drafts."),
    )


def plan_options(function: Verb) -> Verb:
    """--plan and --set, handed to the verb as `plan`."""

    @wraps(function)
    def verb(*, plan_path: str | None, sets: tuple[str, ...], **rest: object) -> None:
        function(plan=read_plan(plan_path, sets), **rest)

    return _decorate(
        verb, click.option("--plan", "plan_path", metavar="FILE", help="A plan.toml, or - for stdin."), set_option
    )


def _decorate(function: Verb, *decorators: Callable[[Verb], Verb]) -> Verb:
    for decorate in reversed(decorators):
        function = decorate(function)
    return function


def read_plan(path: str | None, sets: tuple[str, ...]) -> "Plan":
    """The plan of --plan with every --set applied in order."""
    from steno.core import Plan

    plan = Plan.from_toml(read_text(path, PlanError), "stdin" if path == "-" else path) if path else Plan()
    for item in sets:
        key, equals, value = item.partition("=")
        if not equals or "." not in key:
            raise PlanError(
                f"--set takes KNOB.FIELD=VALUE, got '{item}'. Write for example: --set cache.affine.key_bits=4"
            )
        plan = plan.set(key.strip(), value.strip())
    return plan


def read_text(path: str, error: type[UserError]) -> str:
    """A text file, or stdin for `-`. Raises `error` where it cannot be read."""
    if path == "-":
        return sys.stdin.buffer.read().decode("utf-8", "replace")
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise error(f"{path} is not UTF-8 text (byte {problem.start}). Convert it, for example with iconv.") from None
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror or problem}. Check the name.") from None
