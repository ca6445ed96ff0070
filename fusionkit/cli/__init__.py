"""The command line: one file per command; errors become sentences and exit codes."""

from __future__ import annotations

import errno
import functools
import importlib
import inspect
import os
import shlex
import shutil
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NoReturn, TextIO

import typer

from fusionkit import interruption
from fusionkit.cli.session import Session
from fusionkit.errors import FusionkitError, FusionkitWarning, PluginError, ResourceError, is_out_of_memory

COMMANDS = {
    "run": "run",
    "resume": "resume",
    "sweep": "sweep",
    "evaluate": "evaluate",
    "predict": "predict",
    "validate": "validate",
    "list": "listing",
    "plugins": "plugins",
    "show": "show",
    "new": "new",
    "schema": "schema",
    "runs": "runs",
    "store": "store",
    "doctor": "doctor",
    "check": "check",
    "data": "data",
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
    """Learns to predict an outcome from several kinds of data about the same patient.

    Start with `fusionkit run recipes/breast_rfn.yaml`; -h after a command explains it.
    """
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
            for each in module.app.registered_commands:
                each.callback = _interruptible(inspect.unwrap(each.callback))
            app.add_typer(module.app, name=name)
        else:
            app.command(name)(_interruptible(module.run))
    return app


class _InterruptedError(Exception):
    """A command was interrupted; a KeyboardInterrupt itself would be Typer's."""


def _interruptible(command: Callable[..., None]) -> Callable[..., None]:
    """Lets Ctrl-C and SIGTERM end a command where it loses least."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            with interruption.listening():
                command(*arguments, **options)
        except KeyboardInterrupt:
            raise _InterruptedError from None
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
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return _call_app(sys.argv[1:] if arguments is None else list(arguments))


def _call_app(arguments: list[str]) -> int:
    try:
        build_app()(arguments, prog_name="fusionkit")
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):
            return 0  # the reader has gone (`| head`), which is no mistake
        if _is_misplaced_plugin(stop.__context__):
            print("-p goes before the command: fusionkit -p PLUGIN COMMAND ...", file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except FusionkitError as error:
        return _report(error)
    except (KeyboardInterrupt, _InterruptedError):
        print("interrupted: what was computed is kept. To go on, give the same command:", file=sys.stderr)
        print(f"  {shlex.join(['fusionkit', *arguments])}", file=sys.stderr)
        return 130
    except Exception as error:
        return _report_unforeseen(error)
    return 0


def _is_misplaced_plugin(error: BaseException | None) -> bool:
    """Says whether a command refused `-p`; Typer keeps the class of that error to itself."""
    is_unknown = type(error).__name__ == "NoSuchOption"
    return is_unknown and getattr(error, "option_name", "") in ("-p", "--plugin")


def _report_unforeseen(error: Exception) -> int:
    """Reports what the machine refuses as such, and anything else as a bug."""
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        where = error.filename or "the machine"
        return _report(ResourceError(f"{where}: {error.strerror}. Mend that; what was computed is kept."))
    if isinstance(error, OSError) and "temporary directory" in str(error):
        return _report(ResourceError("temporary files cannot be written. Free space, or set $TMPDIR."))
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return _report(ResourceError("the machine starts no further thread. Ask for fewer workers."))
    if is_out_of_memory(error):
        return _report(ResourceError("memory is full. Ask for narrower layers or smaller batches."))
    traceback.print_exception(error)
    print(
        "error: this is a bug in fusionkit or in a plugin. Please report it with the lines above.",
        file=sys.stderr,
    )
    return 1


def _report(error: FusionkitError) -> int:
    for problem in error.problems:
        print(_wrapped(f"error: {problem}", sys.stderr), file=sys.stderr)
    return error.exit_code


def _wrapped(text: str, file: TextIO) -> str:
    """Returns a sentence in lines that end between words, where a terminal would break them anywhere."""
    if not file.isatty():
        return text  # one line is one problem, for whoever reads on
    width = shutil.get_terminal_size().columns
    # a path stays in one piece, so that it can be copied
    return textwrap.fill(
        text, max(width, 20), subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Shows our own warnings as one sentence, and those of others with their place."""
    is_ours = issubclass(category, FusionkitWarning)
    file = file or sys.stderr
    if is_ours:
        file.write(_wrapped(f"warning: {message}", file) + "\n")
    else:
        file.write(warnings.formatwarning(message, category, filename, lineno))


def _close_output(code: int) -> int:
    """Flushes what was printed, in case the reader has gone, or the disk is full."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # the interpreter flushes once more when it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 0
        return _report(ResourceError(f"standard output: cannot be written ({error.strerror})."))
    return code
