"""The error classes, one per exit code, and the words of messages: nearest names, counts."""

from __future__ import annotations

import difflib
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import PurePath

MOST_PROBLEMS = 100
LONGEST_PROBLEM = 600
LONGEST_SHOWN = 60


def shorten(text: str, length: int = LONGEST_SHOWN, end: int = 0) -> str:
    """Returns a name or a value, short enough for a message; its last `end` characters stay."""
    return text if len(text) <= length else text[: length - 3 - end] + "..." + text[len(text) - end :]


def counted(number: int, noun: str) -> str:
    """Returns how many there are of something: 1 subject, 2 subjects."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def tidy(problem: str) -> str:
    """Returns a problem as one line of bounded length: no file can break a message or steer a terminal."""
    if not problem.isprintable():
        problem = "".join(
            mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in problem
        )
    if len(problem) <= LONGEST_PROBLEM:
        return problem
    return f"{problem[: LONGEST_PROBLEM - 205]} ... {problem[-200:]}"  # the end says what to do


class FusionkitError(Exception):
    """A mistake that the user can mend; shown as one sentence, without a traceback.

    Args:
        problems: One sentence, or every problem found, each `where: what is wrong (given). What to do.`
    """

    exit_code = 1

    def __init__(self, problems: str | Sequence[str]) -> None:
        given = (problems,) if isinstance(problems, str) else tuple(problems)
        if len(given) > MOST_PROBLEMS:
            given = (*given[:MOST_PROBLEMS], f"and {len(given) - MOST_PROBLEMS} more problems.")
        self.problems: tuple[str, ...] = tuple(tidy(problem) for problem in given)
        super().__init__("\n".join(self.problems))


class UsageError(FusionkitError):
    """The command line asks for something that does not exist."""

    exit_code = 2


class RecipeError(FusionkitError):
    """The recipe is wrong; carries every problem found."""

    exit_code = 3


class DataError(FusionkitError):
    """The data are not what the recipe says."""

    exit_code = 4


class PluginError(FusionkitError):
    """A plugin is absent, broken or breaks its contract."""

    exit_code = 5


class IntegrityError(FusionkitError):
    """A file is not what was written, or of a kind that is never read."""

    exit_code = 6


class TrainingError(FusionkitError):
    """Training cannot go on: a loss that is not finite, for example."""

    exit_code = 7


class ResourceError(FusionkitError):
    """The machine is out of disk, memory or rights."""

    exit_code = 8


class FusionkitWarning(UserWarning):
    """What a user should know and nothing stops for; shown as one sentence."""


def is_out_of_memory(error: BaseException) -> bool:
    """Says whether an error means that memory is full: Python's own, or torch's on any device."""
    words = ("allocate", "out of memory")  # torch's, on a CPU and on a GPU
    is_torch = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    return isinstance(error, MemoryError) or is_torch


def one_line(error: BaseException, limit: int = 300) -> str:
    """Returns an error's type and text in one line, for the brackets of a message."""
    text = " ".join(str(error).split())
    text = text if len(text) <= limit else text[:limit] + " ..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def at_place(error: BaseException, limit: int = 300) -> str:
    """Returns an error in one line with the innermost line of the plugin's own code that it went through."""
    frames = [
        (str(frame.f_globals.get("__name__")).partition(".")[0], frame.f_code, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    # the core calls a plugin, perhaps through torch: the first frame that is neither's is the plugin's
    others = {"fusionkit", "torch", *sys.stdlib_module_names}
    package = next((name for name, _, _ in frames if name not in others), None)
    own = [(code, line) for name, code, line in frames if name == package]
    if not own:
        return one_line(error, limit)
    code, line = own[-1]
    file = PurePath(code.co_filename)
    shown = f"{file.parent.name}/{file.name}" if file.name == "__init__.py" else file.name
    return f"{one_line(error, limit)}; {shown}, line {line}, in {code.co_name}"


def suggest(name: str, known: Iterable[str], limit: int = 12) -> str:
    """Returns the hint for an unknown name: the nearest known one, and what is known."""
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    did_you_mean = f"Did you mean '{shorten(near[0])}'? " if near else ""
    if not names:
        return did_you_mean + "None is known."
    shown = ", ".join(map(shorten, names[:limit])) + (
        f" and {len(names) - limit} more" if len(names) > limit else ""
    )
    return f"{did_you_mean}Known: {shown}."
