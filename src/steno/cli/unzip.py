"""`steno unzip`: what `steno zip` made, back: all of it, a list, a range, or what damage left."""

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from steno.core.errors import DataError, OutputError, UserError

from ._options import force_option, json_option
from ._zip import end_progress, open_neural, passes_line, passes_record, progress

if TYPE_CHECKING:
    from steno.codecs.container import Header
    from steno.codecs.kinds import Kinds


@click.command("unzip")
@click.argument("file")
@click.option("--out", metavar="DIR", help="Folder for the files; - writes all bytes to stdout. Default: beside FILE.")
@click.option("--list", "listing", is_flag=True, help="List the entries; decodes nothing.")
@click.option("--test", is_flag=True, help="Decode and check everything; write nothing.")
@click.option("--range", "span", metavar="A:B", help="Bytes A to B (without B) of the content, to stdout.")
@click.option("--salvage", is_flag=True, help="Restore what damage left, and say what it took.")
@click.option("--model", default="nib", metavar="MODEL", help="The model the file was written with.")
@click.option("--threads", default=0, type=click.IntRange(0, 1024), help="Compute threads; 0: all usable cores.")
@click.option("--max-bytes", default=1 << 40, type=click.IntRange(0), help="Refuse content larger than this.")
@click.option("--stats", is_flag=True, help="Print what drafts saved.")
@force_option
@json_option
def command(
    *, file: str, out: str | None, listing: bool, test: bool, span: str | None, salvage: bool, model: str,
    threads: int, max_bytes: int, stats: bool, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Restore FILE (- is stdin, and then the content goes to stdout unless --out names a folder).

    Nothing is given out before its hash fits; a file takes its name only when it is whole.
    """
    if sum((listing, test, span is not None, salvage)) > 1:
        raise UserError("--list, --test, --range and --salvage are four different jobs. Ask for one of them.")
    if as_json and (out == "-" or span is not None or (file == "-" and out is None and not (listing or test))):
        raise UserError("--json and the content cannot both go to stdout. Use --out DIR.")
    with ExitStack() as stack:
        source = _open(stack, file)
        if listing:
            _list(source, file, as_json)
        elif span is not None:
            _range(source, file, span, model, threads)
        elif salvage:
            _salvage(source, file, out=out, model=model, threads=threads, force=force, as_json=as_json)
        else:
            _restore(
                source, file, out=out, model=model, threads=threads, max_bytes=max_bytes, test=test, stats=stats,
                force=force, as_json=as_json,
            )  # fmt: skip


def _open(stack: ExitStack, file: str) -> BinaryIO:
    if file == "-":
        return sys.stdin.buffer
    try:
        return stack.enter_context(open(file, "rb"))
    except OSError as problem:
        raise UserError(f"{file} cannot be read: {problem.strerror or problem}. Check the name.") from None


def _kinds(header: "Header", model: str, threads: int) -> "Kinds":
    from steno.codecs.identity import check
    from steno.codecs.kinds import Kinds

    if not any(header.model):
        return Kinds(None)
    neural, _ = open_neural(model, threads)
    check(header, neural)
    return Kinds(neural)


def _restore(
    source: BinaryIO, file: str, *, out: str | None, model: str, threads: int, max_bytes: int, test: bool,
    stats: bool, force: bool, as_json: bool,
) -> None:  # fmt: skip
    from steno.codecs.files import Unpacker
    from steno.codecs.reader import read_header, walk

    kinds = _kinds(read_header(source), model, threads)
    watch, done, entries = progress("restored"), 0, 0
    to_stdout = not test and (out == "-" or (file == "-" and out is None))
    folder = Path(out) if out else Path(file).parent
    unpacker = Unpacker(folder, _stem(file), force=force)
    try:
        with ExitStack() as stack:
            if not test and not to_stdout:
                stack.enter_context(unpacker)
            for head, raw in walk(source, kinds, max_bytes):
                if to_stdout:
                    sys.stdout.buffer.write(raw)
                elif not test:
                    unpacker.feed(head, raw)
                done += len(raw)
                entries += sum(piece.offset == 0 for piece in head.pieces)
                watch(done)
            if to_stdout:
                sys.stdout.buffer.flush()
    finally:
        end_progress()
    if as_json:
        record = {"file": file, "raw_bytes": done, "entries": entries, "written": [str(p) for p in unpacker.files]}
        click.echo(json.dumps(record | passes_record(kinds.passes), ensure_ascii=False))
        return
    verb = "checked" if test else "restored"
    many = "entry" if entries == 1 else "entries"
    click.echo(f"{verb} {entries:,} {many}, {done:,} bytes: every hash fits", err=to_stdout)
    if stats:
        click.echo(passes_line(kinds.passes), err=to_stdout)


def _list(source: BinaryIO, file: str, as_json: bool) -> None:
    archive = _archive(source, file)
    rows: list[dict[str, object]] = []
    offsets: list[int] = []
    chunks: list[dict[str, object]] = []
    for head in archive.heads():
        chunks.append({"kind": head.kind.name.lower(), "raw": head.raw, "payload": head.payload, "lanes": head.lanes})
        for piece in head.pieces:
            if piece.offset == 0:
                rows.append({"name": piece.name, "entry": piece.entry.name.lower()})
                offsets.append(head.offset + piece.at)
    ends = [*offsets[1:], archive.raw]
    for row, start, stop in zip(rows, offsets, ends, strict=False):
        row |= {"start": start, "bytes": stop - start}
    if as_json:
        record = {
            "file": file,
            "model": archive.header.name,
            "raw_bytes": archive.raw,
            "entries": rows,
            "chunks": chunks,
        }
        click.echo(json.dumps(record, ensure_ascii=False))
        return
    for row in rows:
        click.echo(
            f"{row['bytes']:>14,}  {row['start']:>14,}  {row['name'] or '(stdin)'}{'/' * (row['entry'] == 'folder')}"
        )
    packed = sum(size for size, _ in archive.index.sizes)
    click.echo(
        f"{len(rows)} entries, {archive.raw:,} bytes in {packed:,}; {len(chunks)} chunks; "
        f"written with {archive.header.name or 'no model'}",
        err=True,
    )  # fmt: skip


def _range(source: BinaryIO, file: str, span: str, model: str, threads: int) -> None:
    archive = _archive(source, file)
    low, colon, high = span.partition(":")
    if not colon or not all(not word or word.isdecimal() for word in (low, high)):
        raise UserError(f"--range takes A:B, two byte positions, got '{span}'. Write for example: --range 0:1000")
    start, stop = int(low or 0), min(int(high) if high else archive.raw, archive.raw)
    kinds = _kinds(archive.header, model, threads)
    for part in archive.read(kinds, start, stop):
        sys.stdout.buffer.write(part)
    sys.stdout.buffer.flush()


def _salvage(
    source: BinaryIO, file: str, *, out: str | None, model: str, threads: int, force: bool, as_json: bool
) -> None:
    from steno.codecs.reader import read_header
    from steno.codecs.rescue import rescue

    data = source.read()
    import io

    try:
        kinds = _kinds(read_header(io.BytesIO(data)), model, threads)
    except DataError as error:
        # The header is lost. Chunks still carry their own checks, so the model asked for is tried.
        click.echo(f"the header is damaged ({error}); trying the model {model}", err=True)
        from steno.codecs.kinds import Kinds

        kinds = Kinds(open_neural(model, threads)[0])
    folder = Path(out) if out and out != "-" else Path(file).parent
    if out == "-":
        raise OutputError("--salvage writes files, whole ones and damaged ones apart. Use --out DIR.")
    found = rescue(data, kinds, folder, _stem(file), force=force)
    if as_json:
        click.echo(json.dumps(found.record(), ensure_ascii=False))
    else:
        for path in found.whole:
            click.echo(f"whole    {path}")
        for path in found.damaged:
            click.echo(f"damaged  {path}")
        for lost in found.lost:
            stop = f"{lost.stop:,}" if lost.stop >= 0 else "?"
            click.echo(f"lost     bytes {lost.start:,} to {stop}: {lost.why}")
    if found.lost:
        raise DataError(f"{file} is damaged: {found.raw:,} bytes were restored, the ranges above are lost.")


def _archive(source: BinaryIO, file: str):
    import io

    from steno.codecs.reader import Archive

    return Archive(source if file != "-" and source.seekable() else io.BytesIO(source.read()))


def _stem(file: str) -> str:
    if file == "-":
        return "stdin.out"
    name = Path(file).name
    return name.removesuffix(".sz") if name.endswith(".sz") and name != ".sz" else f"{name}.out"
