"""`fusionkit check`: whether components keep the contract, clause by clause."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusionkit.errors import counted

if TYPE_CHECKING:
    from fusionkit.registry import Registry
    from fusionkit.specs import Spec
    from fusionkit.testing.case import Case, Check

WIDTHS = (30, 16)
"""Of the columns for a check and for how it went."""


def run(
    context: typer.Context,
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="Components, as `fusionkit list` shows them.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check components against the contract (docs/contract.md), on each of their examples.

    Exit code 5 if a clause is broken; a fault that breaks several is told once. What does not apply is said,
    and is not counted as passed.
    """
    from fusionkit.testing.kit import pair

    found: list[dict[str, Any]] = []
    for card in _find(context.obj.registry, names):
        for case, pairs in groupby(pair(card), lambda each: each[0]):
            found += _look(case, [check for _, check in pairs], tells=not as_json)
    counts = {status: 0 for status in ("pass", "fail", "does not apply")}
    for entry in found:
        counts[entry["status"]] += 1
    print(json.dumps(found, indent=2) if as_json else ", ".join(f"{n} {text}" for text, n in counts.items()))
    if counts["fail"]:
        raise typer.Exit(5)


def _look(case: Case, checks: Sequence[Check], *, tells: bool) -> Iterator[dict[str, Any]]:
    """Yields how each check of a case went, and prints it; a sentence that fails several stands once."""
    failed: dict[str, list[str]] = {}
    tell: Callable[[str], None] = partial(print, flush=True) if tells else _keep_quiet
    tell(_title(case))
    for check in checks:
        status, reason = check.look(case)
        alike = failed.setdefault(reason, []) if status == "fail" else []
        alike.append(check.name)
        if len(alike) == 1:
            tell(_line(check.name, status, reason.removeprefix(f"{case.id}: ")))
        yield {**_describe(case), "check": check.name, "status": status, "reason": reason}
    for first, *more in failed.values():
        if more:
            tell(
                _line(
                    f"and {counted(len(more), 'more check')}",
                    "fail",
                    f"for the reason of {first}, from {more[0]} on",
                )
            )


def _keep_quiet(line: str) -> None:
    """Prints nothing."""


def _find(registry: Registry, names: list[str]) -> list[Spec]:
    from fusionkit.errors import UsageError
    from fusionkit.specs import COMPONENT_KINDS

    every = [card for kind in COMPONENT_KINDS for card, _ in registry.cards(kind)]
    known = [card.name for card in every]
    problems = [
        f"check: there is no component called '{name}'. {registry.hint(name)}"
        for name in names
        if name not in known
    ]
    if problems:
        raise UsageError(problems)
    return [card for name in dict.fromkeys(names) for card in every if card.name == name]


def _describe(case: Case) -> dict[str, Any]:
    options = None if case.example is None else case.config.model_dump(mode="json", exclude_defaults=True)
    return {"component": case.card.name, "kind": case.kind, "example": case.example, "options": options}


def _title(case: Case) -> str:
    if case.example is None:
        return f"{case.card.name} ({case.kind}): the card"
    options = json.dumps(_describe(case)["options"])
    return textwrap.shorten(f"{case.id}: {options}", _width(), placeholder=" ...")


def _line(check: str, status: str, reason: str) -> str:
    first, second = WIDTHS
    start = f"  {check:<{first}}{status:<{second}}"
    if not reason:
        return start.rstrip()
    lines = list(_wrap(reason, max(_width() - len(start), 30)))
    return "\n".join([start + lines[0], *(" " * len(start) + line for line in lines[1:])])


def _wrap(text: str, width: int) -> Iterator[str]:
    # one line is one check, for whoever reads on
    yield from textwrap.wrap(text, width, break_on_hyphens=False) if _is_terminal() else [text]


def _is_terminal() -> bool:
    import sys

    return sys.stdout.isatty()


def _width() -> int:
    return min(shutil.get_terminal_size().columns, 110)
