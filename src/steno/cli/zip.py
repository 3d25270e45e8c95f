"""`steno zip`: files and folders to one .sz file, through a model."""

import json
import shutil
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from steno.core.errors import OutputError, UserError

from ._options import force_option, json_option
from ._zip import end_progress, open_neural, passes_line, passes_record, progress

if TYPE_CHECKING:
    from steno.codecs.kinds import Kinds
    from steno.codecs.writer import Totals, Writer


@click.command("zip")
@click.argument("path")
@click.option("--out", metavar="FILE", help="Where to write; - is stdout. Default: PATH.sz.")
@click.option("--model", default="nib", metavar="MODEL", help="A model folder, a hub id, or nib; unzip needs the same.")
@click.option("--chunk", default=256, type=click.IntRange(1, 16384), help="KiB of text that one chunk holds.")
@click.option("--threads", default=0, type=click.IntRange(0, 1024), help="Compute threads; 0: all usable cores.")
@click.option("--rm/--keep", "remove", default=False, help="Remove PATH once the result is safe; default: keep it.")
@click.option("--stats", is_flag=True, help="Print sizes by kind of chunk, and what drafts saved while checking.")
@force_option
@json_option
def command(
    *, path: str, out: str | None, model: str, chunk: int, threads: int, remove: bool, stats: bool, force: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Compress PATH (a file, a folder, or - for stdin) without loss.

    Every chunk is decoded and compared before it is written, and the result takes its name only when it is whole. The
    model is not in the file: unzip needs the same one. nib ships with steno.
    """
    # `.` and `..` have no name of their own.
    target = out or ("-" if path == "-" else f"{Path(path) if Path(path).name else Path(path).resolve().name}.sz")
    if path == "-" and remove:
        raise UserError("--rm: stdin cannot be removed. Leave it out.")
    if target == "-" and sys.stdout.isatty():
        raise OutputError("a .sz file is no text for a terminal. Use --out FILE, or redirect the output.")
    if target == "-" and as_json:
        raise UserError("--json and a .sz file cannot both go to stdout. Use --out FILE.")
    if target != "-" and Path(target).exists() and not force:
        raise OutputError(f"{target} exists already. Use --force to overwrite it, or --out for another name.")

    from steno.codecs.files import collect
    from steno.codecs.identity import header
    from steno.codecs.kinds import Kinds
    from steno.codecs.writer import Writer
    from steno.core.files import replacing

    found, left = ([], []) if path == "-" else collect(Path(path))
    neural, model_bytes = open_neural(model, threads)
    kinds, began = Kinds(neural), time.perf_counter()
    try:
        with ExitStack() as stack:
            sink: BinaryIO = sys.stdout.buffer if target == "-" else stack.enter_context(replacing(Path(target)))
            writer = Writer(sink, kinds, header(neural), chunk=chunk << 10, watch=progress("zipped"))
            _fill(writer, found)
            totals = writer.close()
            sink.flush()
    finally:
        end_progress()
    for line in left:
        click.echo(f"left out: {line}", err=True)
    seconds = time.perf_counter() - began
    if as_json:
        click.echo(
            json.dumps(
                _record(
                    target, model=model, model_bytes=model_bytes, totals=totals, kinds=kinds, seconds=seconds, left=left
                ),
                ensure_ascii=False,
            )
        )
    else:
        click.echo(_closing(target, model, model_bytes, totals, seconds), err=target == "-")
        if stats:
            _stats(totals, kinds, to_stderr=target == "-")
    if remove:
        _remove(Path(path), left)


def _fill(writer: "Writer", found: list) -> None:  # type: ignore[type-arg]
    from steno.codecs.container import Entry

    if not found:
        writer.add("", Entry.FILE, sys.stdin.buffer)
    for name, entry, path in found:
        if entry is Entry.FOLDER:
            writer.add(name, entry)
            continue
        try:
            with open(path, "rb") as source:
                writer.add(name, entry, source)
        except PermissionError:
            raise UserError(f"{path} cannot be read: permission denied. Nothing was written.") from None


def _closing(target: str, model: str, model_bytes: int, totals: "Totals", seconds: float) -> str:
    kept = totals.written / totals.raw if totals.raw else 1.0
    rate = totals.raw / seconds / 1e3 if seconds > 0 else 0.0
    return (
        f"{'stdout' if target == '-' else target}: {totals.raw:,} bytes in {totals.files:,} "
        f"{'entry' if totals.files == 1 else 'entries'} -> {totals.written:,} bytes ({kept:.1%}), checked by decoding; "
        f"{rate:,.0f} kB/s; the model ({model}, {model_bytes / 1e6:,.1f} MB) is not in the file"
    )


def _stats(totals: "Totals", kinds: "Kinds", *, to_stderr: bool) -> None:
    for kind, (raw, payload) in sorted(totals.kinds.items()):
        click.echo(f"{kind.name.lower():8} {raw:>14,} bytes -> {payload:,}", err=to_stderr)
    click.echo(f"checking: {passes_line(kinds.passes)}", err=to_stderr)


def _record(
    target: str, *, model: str, model_bytes: int, totals: "Totals", kinds: "Kinds", seconds: float, left: list[str]
) -> dict[str, object]:
    return {
        "file": target,
        "model": model,
        "model_bytes": model_bytes,
        "raw_bytes": totals.raw,
        "zip_bytes": totals.written,
        "entries": totals.files,
        "chunks": totals.chunks,
        "seconds": seconds,
        "kinds": {k.name.lower(): {"raw": raw, "payload": payload} for k, (raw, payload) in totals.kinds.items()},
        "checking": passes_record(kinds.passes),
        "left_out": left,
    }


def _remove(path: Path, left: list[str]) -> None:
    if left:
        raise UserError(
            f"--rm: {len(left)} things below {path} were left out, so nothing was removed. Remove it yourself."
        )
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
