"""`steno run`: continue a prompt, streaming to the terminal."""

import json
import sys
from typing import TYPE_CHECKING

import click

from steno.core.errors import PromptError, StenoError

from ._options import json_option, model_options, plan_options, read_text

if TYPE_CHECKING:
    from steno.core import Plan, Value
    from steno.decode import Completion, Piece
    from steno.models import ModelSpec
    from steno.tokens import Tokenizer


SCHEMA = "decode.constrain.json_schema"


@click.command("run")
@model_options
@click.argument("prompt", required=False)
@plan_options
@click.option("--max-tokens", type=click.IntRange(1), default=128, help="Most tokens to write.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Fixes sampling.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; repeatable.")
@click.option("--schema", metavar="FILE", help="Write JSON that this JSON Schema allows; - is stdin.")
@click.option("--show-drafts", is_flag=True, help="Colour what was drafted; without colours, put it in [ ].")
@json_option
def command(
    *,
    spec: "ModelSpec",
    prompt: str | None,
    plan: "Plan",
    max_tokens: int,
    seed: int,
    stop: tuple[str, ...],
    schema: str | None,
    show_drafts: bool,
    as_json: bool,
) -> None:
    """Continue PROMPT (- or nothing is stdin, less its last line break) with MODEL.

    Table models have no tokenizer: their prompts and their output are ids such as "3 1 4". Sampling is a knob:
    --set decode.shape.temperature.temperature=0.8

    With --schema, or another constraint in the plan, a text that is cut before it is whole is an error (exit 1).
    """
    from steno.tune.job import open_subject
    from steno.tune.prompts import Prompt, encode, fit

    plan = plan if schema is None else _with_schema(plan, schema, prompt)
    plan.check()
    constrained = plan.one("decode.constrain")
    text = _stdin() if prompt in (None, "-") else str(prompt)
    subject = open_subject(spec)
    tokenizer = subject.tokenizer
    ids = encode(Prompt(name="the prompt", line=1, text=text), tokenizer)

    model = subject.model
    fit(ids, model.vocab, model.context, typed=tokenizer is None)

    from steno.decode import Loop
    from steno.decode.base import ConstraintKnob, Request
    from steno.tokens import Words

    words = Words.of(tokenizer, model.vocab, model.eos) if constrained and tokenizer else None
    request = Request(number=0, prompt=ids, max_tokens=max_tokens, stop=stop, seed=seed)
    decode = tokenizer.decode if tokenizer else None
    loop = Loop(model, plan, text=decode, capacity=len(ids) + max_tokens, words=words)
    ticket = loop.submit(request)
    show = _Screen(tokenizer, drafts=show_drafts, quiet=as_json)
    try:
        for piece in loop:
            show(piece)
    except KeyboardInterrupt:
        show.end()
        click.echo(f"stopped after {show.tokens} tokens", err=True)
        raise
    done = loop.completed[ticket]
    show.end()
    if as_json:
        click.echo(json.dumps(_record(done, model.name, model.backend), ensure_ascii=False))
    click.echo(_closing(done), err=True)
    if isinstance(constrained, ConstraintKnob) and constrained.closes and done.finish != "eos":
        raise StenoError(
            f"the text ended by {done.finish} before it was what {constrained.name} asks for. Raise --max-tokens"
            f"{', or take away --stop' if stop else ''}."
        )


def _with_schema(plan: "Plan", path: str, prompt: str | None) -> "Plan":
    """The plan with the schema of a file. What the schema says without effect goes to stderr."""
    from steno.core import make_knob
    from steno.core.errors import KnobError

    if path == "-" and prompt in (None, "-"):
        raise PromptError("prompt and schema cannot both come from stdin. Give one of them as an argument or a file.")
    settings: dict[str, Value] = {"schema": read_text(path, KnobError)}
    held = plan.one("decode.constrain")
    if held is not None and held.name == SCHEMA:
        settings = {**held.settings(), **settings}
    knob = make_knob(SCHEMA, settings)
    notes: tuple[str, ...] = getattr(knob, "notes", ())
    if notes:
        click.echo(f"not held, because JSON Schema says that it asserts nothing: {', '.join(notes)}", err=True)
    return plan.with_knobs(knob)


def _stdin() -> str:
    if sys.stdin.isatty():
        click.echo("type the prompt, then Ctrl-D", err=True)
    return sys.stdin.buffer.read().decode("utf-8", "replace").removesuffix("\n")


class _Screen:
    """Writes pieces as they come. Ids are written as such where there is no tokenizer."""

    def __init__(self, tokenizer: "Tokenizer | None", *, drafts: bool, quiet: bool) -> None:
        import os

        self.stream = tokenizer.stream() if tokenizer else None
        self.drafts = drafts
        self.quiet = quiet
        self.colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self.tokens = 0

    def __call__(self, piece: "Piece") -> None:
        first, self.tokens = self.tokens == 0, self.tokens + len(piece.tokens)
        if self.quiet:
            return
        if self.stream is None:
            drafted = " ".join(map(str, piece.tokens[: piece.drafted]))
            own = " ".join(map(str, piece.tokens[piece.drafted :]))
            gaps = ("" if first else " ", " " if drafted and own else "")
            self._write(gaps[0] + self._mark(drafted) + gaps[1] + own)
            return
        if not self.drafts:
            self._write(piece.text)
            return
        drafted = "".join([self.stream.push(token) for token in piece.tokens[: piece.drafted]])
        for token in piece.tokens[piece.drafted :]:
            self.stream.push(token)
        # A piece cut by a stop string may end inside the draft.
        drafted = drafted if piece.text.startswith(drafted) else piece.text if drafted.startswith(piece.text) else ""
        self._write(self._mark(drafted) + piece.text[len(drafted) :])

    def end(self) -> None:
        if self.tokens and not self.quiet:
            self._write("\n")

    def _mark(self, text: str) -> str:
        if not text or not self.drafts:
            return text
        return click.style(text, fg="green") if self.colour else f"[{text}]"

    def _write(self, text: str) -> None:
        click.echo(text, nl=False, color=self.colour)
        sys.stdout.flush()


def _closing(done: "Completion") -> str:
    s = done.stats
    seconds = s.prefill_s + s.decode_s
    rate = len(done.tokens) / seconds if seconds > 0 else 0.0
    accepted = s.accepted / s.passes if s.passes else 0.0
    return (
        f"{len(done.tokens)} tokens, {rate:,.1f} tokens/s, {s.passes} passes, {accepted:.2f} accepted per pass, "
        f"ended by {done.finish}"
    )


def _record(done: "Completion", model: str, backend: str) -> dict[str, object]:
    s = done.stats
    seconds = s.prefill_s + s.decode_s
    return {
        "model": model,
        "backend": backend,
        "text": done.text,
        "tokens": list(done.tokens),
        "finish": done.finish,
        "prompt_tokens": len(done.request.prompt),
        "tokens_per_s": len(done.tokens) / seconds if seconds > 0 else 0.0,
        "prefill_s": s.prefill_s,
        "decode_s": s.decode_s,
        "passes": s.passes,
        "drafted": s.drafted,
        "accepted": s.accepted,
        "found": [
            {"tokens": list(h.tokens), "score": h.score, **({"holes": h.holes} if h.holes else {})} for h in done.found
        ],
        "pieces": [
            {"text": p.text, "tokens": list(p.tokens), "drafted": p.drafted, "source": p.source} for p in done.pieces
        ],
    }
