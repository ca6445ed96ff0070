"""The command line: one file per command; errors become sentences and exit codes."""

from __future__ import annotations

import errno
import functools
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NoReturn

import typer

from fusionkit.cli.session import Session
from fusionkit.errors import FusionkitError, PluginError, ResourceError, is_out_of_memory

COMMANDS = {
    "run": "run",
    "validate": "validate",
    "predict": "predict",
    "list": "listing",
    "show": "show",
    "schema": "schema",
    "store": "store",
    "doctor": "doctor",
}
"""Command -> the module of this package with its function `run`, or its Typer `app` where it has commands."""

# what the machine refuses, rather than what a program does wrong
_REFUSALS = (
    errno.ENOSPC,
    errno.EFBIG,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOMEM,
    errno.EMFILE,
    errno.ENOTDIR,
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from fusionkit import __version__

        print(f"fusionkit {__version__}")
        raise typer.Exit


def _start(
    context: typer.Context,
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            "-p", "--plugin", metavar="PLUGIN", help="A plugin that is not installed: file, folder or module."
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Learns to predict an outcome from several kinds of data about the same patient."""
    context.obj = Session(tuple(plugin or ()))


def build_app() -> typer.Typer:
    """Returns the app with every command; no command's own imports happen before it runs."""
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode=None,  # plain help: quicker, and readable in 80 columns without colour
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_start)
    for name, module_name in COMMANDS.items():
        module = importlib.import_module(f"fusionkit.cli.{module_name}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name)
        else:
            app.command(name)(_interruptible(module.run))
    return app


def _interruptible(command: Callable[..., None]) -> Callable[..., None]:
    """Ends a command with a sentence where it is interrupted; else Typer would say that it aborted."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except KeyboardInterrupt:
            typer.echo("interrupted: what was computed is kept; give the same command again.", err=True)
            raise typer.Exit(130) from None
        except SystemExit as stop:
            # a command ends by typer.Exit; only foreign code calls sys.exit, and must not look like success
            raise PluginError(
                f"a plugin ended the program (SystemExit {stop.code}). Mend it, or leave it out."
            ) from stop

    return run


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits: 0 done, 1 bug, 2 usage, else the error's own code."""
    sys.exit(_close_output(_call(arguments)))


def _call(arguments: Sequence[str] | None) -> int:
    """Runs one command and returns its exit code."""
    try:
        build_app()(None if arguments is None else list(arguments), prog_name="fusionkit")
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):
            return 0  # the reader has gone (`| head`), which is no mistake
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except FusionkitError as error:
        return _report(error)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _REFUSALS:
            return _report(ResourceError(f"{error.filename or 'the machine'}: {error.strerror}."))
        if isinstance(error, RuntimeError) and "start new thread" in str(error):
            return _report(ResourceError("the machine starts no further thread. Ask for fewer workers."))
        if is_out_of_memory(error):
            return _report(ResourceError("memory is full. Ask for narrower layers or smaller batches."))
        traceback.print_exc()
        print(
            "error: this is a bug in fusionkit or in a plugin. Please report it with the lines above.",
            file=sys.stderr,
        )
        return 1
    return 0


def _report(error: FusionkitError) -> int:
    for problem in error.problems:
        print(f"error: {problem}", file=sys.stderr)
    return error.exit_code


def _close_output(code: int) -> int:
    """Flushes what was printed, in case the reader has gone."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # the interpreter flushes once more when it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code
