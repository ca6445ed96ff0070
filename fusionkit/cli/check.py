"""`fusionkit check`: whether components keep the contract, clause by clause."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fusionkit.registry import Registry
    from fusionkit.specs import Spec
    from fusionkit.testing.case import Case

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

    Exit code 5 if a clause is broken. What does not apply is said, and is not counted as passed.
    """
    from fusionkit.testing.kit import pair

    found, case = [], None
    for card in _find(context.obj.registry, names):
        for each, check in pair(card):
            status, reason = check.look(each)
            found.append({**_describe(each), "check": check.name, "status": status, "reason": reason})
            if as_json:
                continue
            if each != case:
                print(_title(each), flush=True)
                case = each
            print(_line(check.name, status, reason.removeprefix(f"{each.id}: ")), flush=True)
    counts = {status: 0 for status in ("pass", "fail", "does not apply")}
    for entry in found:
        counts[entry["status"]] += 1
    print(json.dumps(found, indent=2) if as_json else ", ".join(f"{n} {text}" for text, n in counts.items()))
    if counts["fail"]:
        raise typer.Exit(5)


def _find(registry: Registry, names: list[str]) -> list[Spec]:
    from fusionkit.errors import UsageError, suggest
    from fusionkit.specs import COMPONENT_KINDS

    every = [card for kind in COMPONENT_KINDS for card, _ in registry.cards(kind)]
    known = [card.name for card in every]
    problems = [
        f"check: there is no component called '{name}'. {suggest(name, known)}{registry.broken_note()}"
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
