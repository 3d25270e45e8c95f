"""`steno`: finds the verb, runs it, and turns every end into an exit code.

0 done, 1 failed, 2 the request has to be mended, 130 Ctrl-C.
"""

import contextlib
import os
import sys
from importlib import import_module

import click

from steno import __version__
from steno.core.errors import StenoError, nearest

VERBS = ("run", "complete", "tune", "verify", "bench", "methods", "plan", "train", "zip", "unzip")


class Verbs(click.Group):
    """A group whose commands are modules of this package, imported when asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        return import_module(f"steno.cli.{cmd_name}").command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in VERBS:
            raise click.UsageError(f"there is no verb '{args[0]}'. {nearest(args[0], VERBS)} See: steno --help")
        return super().resolve_command(ctx, args)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="steno %(version)s")
def cli() -> None:
    """Run autoregressive models faster and in less memory, and prove what that changed."""


def main(argv: list[str] | None = None) -> None:
    """Entry point of the `steno` command. Always leaves by SystemExit."""
    code = 1
    try:
        words = sys.argv[1:] if argv is None else argv
        # Not `cli.main`: it has its own ideas of exit codes and of a closed pipe.
        with cli.make_context("steno", list(words), obj=list(words)) as context:
            cli.invoke(context)
        code = 0
        sys.stdout.flush()
    except click.exceptions.Exit as done:
        code = done.exit_code
    except (KeyboardInterrupt, click.Abort):
        _talk("stopped")
        code = 130
    except StenoError as error:
        _debug()
        _talk(str(error), "error")
        code = error.exit_code
    except click.ClickException as error:
        _debug()
        _talk(error.format_message(), "error")
        code = 2
    except BrokenPipeError:
        # The reader of our output is gone, as in `steno methods | head`; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 0
    except Exception as error:
        _debug()
        _talk(
            f"{type(error).__name__}: {error}. This is a defect of steno; STENO_DEBUG=1 shows where it arose.", "error"
        )
    raise SystemExit(code)


def _talk(text: str, kind: str = "") -> None:
    prefix = click.style(f"{kind}: ", fg="red", bold=True) if kind and _colour() else f"{kind}: " if kind else ""
    with contextlib.suppress(OSError):
        click.echo(prefix + text, err=True, color=_colour())


def _colour() -> bool:
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")


def _debug() -> None:
    if os.environ.get("STENO_DEBUG"):
        import traceback

        traceback.print_exc()


if __name__ == "__main__":
    main()
