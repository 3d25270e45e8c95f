"""`steno complete`: suggestions at a cursor in a file."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from steno.core.errors import PromptError

from ._options import json_option, named_model_options, plan_options

if TYPE_CHECKING:
    from steno.core import Plan
    from steno.models import ModelSpec


# A place on stdin, -:1:3, looks like options.
@click.command("complete", context_settings={"ignore_unknown_options": True})
@click.argument("place", metavar="FILE:LINE[:COL]")
@named_model_options
@plan_options
@click.option("--provider", default="diverse_beam", metavar="NAME", help="The search: diverse_beam, superposed, ...")
@click.option("--count", type=click.IntRange(1, 64), default=3, help="Suggestions.")
@click.option("--lines", type=click.IntRange(1), default=1, help="Most lines of a suggestion.")
@click.option("--max-tokens", type=click.IntRange(1), default=32, help="Most tokens of a suggestion.")
@json_option
def command(
    *,
    place: str,
    spec: "ModelSpec",
    plan: "Plan",
    provider: str,
    count: int,
    lines: int,
    max_tokens: int,
    as_json: bool,
) -> None:
    """Suggest what may stand at a place of FILE (- is stdin), given the text before it.

    LINE and COL count from 1; COL is the character that the cursor stands before, by default the end of the line.
    Suggestions come on stdout, best first; those of several lines are parted by a line of three hyphens.
    """
    cursor = _cursor(place)
    before = _before(_text(cursor.path), cursor)

    from steno.decode.complete import complete
    from steno.decode.complete import provider as search
    from steno.tune.job import open_subject

    if plan.one("decode.search") is None:
        plan = plan.with_knobs(search(provider, count))
    plan.check()
    subject = open_subject(spec)
    if subject.tokenizer is None:
        raise PromptError("table models have no tokenizer, so there is no text to complete. Choose another --model.")
    plan.check(subject.model.backend)
    done = complete(
        subject.model, subject.tokenizer, before, count=count, lines=lines, max_tokens=max_tokens, plan=plan
    )
    if as_json:
        click.echo(json.dumps({"model": subject.model.name, **asdict(done)}, ensure_ascii=False))
    else:
        click.echo(("\n" if lines == 1 else "\n---\n").join([s.text for s in done.found]))
    search_ms = (done.total_s - done.prompt_s) * 1e3
    click.echo(
        f"{len(done.found)} suggestions in {done.total_s * 1e3:.1f} ms: prompt of {done.prompt_tokens} tokens "
        f"{done.prompt_s * 1e3:.1f} ms, search {search_ms:.1f} ms in {done.passes} passes",
        err=True,
    )


@dataclass(frozen=True)
class _Cursor:
    """A place as typed; no column: the end of the line."""

    path: str
    line: int
    column: int | None


def _cursor(place: str) -> _Cursor:
    words = place.rsplit(":", 2)
    if len(words) == 3 and words[1].isdecimal() and words[2].isdecimal():
        path, line, column = words[0], int(words[1]), int(words[2])
    else:
        path, _, last = place.rpartition(":")
        if not path or not last.isdecimal():
            raise PromptError(f"a place is FILE:LINE or FILE:LINE:COL with whole numbers from 1, got '{place}'.")
        line, column = int(last), None
    if line < 1 or column == 0:
        raise PromptError(f"lines and columns count from 1, got '{place}'.")
    return _Cursor(path, line, column)


def _text(path: str) -> str:
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as problem:
        raise PromptError(f"{path} cannot be read: {problem.strerror or problem}. Check the name.") from None
    if b"\0" in data:
        raise PromptError(f"{path} is not text: it holds a zero byte at {data.index(0)}.")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as problem:
        raise PromptError(
            f"{path} is not UTF-8 text (byte {problem.start}). Convert it, for example with iconv."
        ) from None


def _before(text: str, cursor: _Cursor) -> str:
    """The text up to the cursor."""
    lines = text.split("\n")
    if cursor.line > len(lines):
        raise PromptError(f"{cursor.path} has {len(lines)} lines; line {cursor.line} is past its end.")
    line = lines[cursor.line - 1]
    column = len(line) + 1 if cursor.column is None else cursor.column
    if column > len(line) + 1:
        raise PromptError(f"{cursor.path}: line {cursor.line} has columns 1 to {len(line) + 1}, got {column}.")
    return "\n".join([*lines[: cursor.line - 1], line[: column - 1]])
