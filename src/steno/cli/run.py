"""`steno run`: continue a prompt, streaming to the terminal."""

import json
import sys
from typing import TYPE_CHECKING

import click

from ._options import json_option, model_options, plan_options

if TYPE_CHECKING:
    from steno.core import Plan
    from steno.decode import Completion, Piece
    from steno.models import ModelSpec
    from steno.tokens import Tokenizer


@click.command("run")
@model_options
@click.argument("prompt", required=False)
@plan_options
@click.option("--max-tokens", type=click.IntRange(1), default=128, help="Most tokens to write.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Fixes sampling.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; repeatable.")
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
    show_drafts: bool,
    as_json: bool,
) -> None:
    """Continue PROMPT (- or nothing is stdin, less its last line break) with MODEL.

    Table models have no tokenizer: their prompts and their output are ids such as "3 1 4". Sampling is a knob:
    --set decode.shape.temperature.temperature=0.8
    """
    from steno.tune.job import open_subject
    from steno.tune.prompts import Prompt, encode, fit

    plan.check()
    text = _stdin() if prompt in (None, "-") else str(prompt)
    subject = open_subject(spec)
    tokenizer = subject.tokenizer
    ids = encode(Prompt(name="the prompt", line=1, text=text), tokenizer)

    model = subject.model
    fit(ids, model.vocab, model.context, typed=tokenizer is None)

    from steno.decode import Loop
    from steno.decode.base import Request

    request = Request(number=0, prompt=ids, max_tokens=max_tokens, stop=stop, seed=seed)
    loop = Loop(model, plan, text=tokenizer.decode if tokenizer else None, capacity=len(ids) + max_tokens)
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
        "found": [{"tokens": list(h.tokens), "score": h.score} for h in done.found],
        "pieces": [
            {"text": p.text, "tokens": list(p.tokens), "drafted": p.drafted, "source": p.source} for p in done.pieces
        ],
    }
