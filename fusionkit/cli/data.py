"""`fusionkit data`: what is wrong or doubtful with a recipe's data."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusionkit.cli.places import DataRoot, StoreRoot, make_places
from fusionkit.cli.progress import show_progress
from fusionkit.errors import counted, tidy

if TYPE_CHECKING:
    from fusionkit.data.audit import Audit, ColumnFacts
    from fusionkit.recipe.load import LoadedRecipe

app = typer.Typer(no_args_is_help=True)
_WIDTH = 80


@app.callback()
def _group() -> None:
    """Look at a recipe's data."""


@app.command("audit")
def audit(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="PATH=VALUE", help="Changes to the recipe.")
    ] = None,
    data_root: DataRoot = None,
    store: StoreRoot = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, every row named.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Show no progress.")] = False,
) -> None:
    """Look at all that a recipe reads; exit 4 if it would stop a run.

    Every cell is held against its column's declaration, every file is decoded to its end. Files that an
    earlier audit found whole are decoded again only when their bytes have changed.

    fusionkit data audit recipes/breast_usg.yaml
    """
    from fusionkit.errors import DataError
    from fusionkit.recipe.load import load_recipe

    loaded = load_recipe(recipe, context.obj.registry, overrides or [], data_root=data_root)
    from fusionkit.data.audit import Audit
    from fusionkit.data.audit_files import Finding
    from fusionkit.prepare import examine
    from fusionkit.store import using

    places = make_places(data_root, store)
    try:
        with using(places.store), show_progress(quiet=quiet or as_json) as tell:
            found = examine(loaded, places, tell, fetches=False).audit
    except DataError as error:  # the source itself cannot make rows of the data
        found = Audit(errors=[Finding("source", problem) for problem in error.problems])
    if as_json:
        print(json.dumps({"recipe": loaded.recipe.name, **found.to_json()}, indent=2))
    else:
        print("\n".join(audit_lines(loaded, found)))
    for problem in found.problems():
        typer.echo(f"error: {problem}", err=True)
    if found.errors:
        raise typer.Exit(DataError.exit_code)


def audit_lines(loaded: LoadedRecipe, audit: Audit) -> Iterator[str]:
    """Yields the audit in plain words, at most 80 columns where names allow."""
    if audit.samples:
        samples, subjects = _count(audit.samples, "sample"), _count(audit.subjects, "subject")
        yield f"{loaded.recipe.name}: {samples} of {subjects}."
        yield ""
        rows = [[name, str(each["samples"]), str(each["subjects"])] for name, each in audit.classes.items()]
        yield from _table(["class", "samples", "subjects"], rows)
        yield ""
        rows = [[name, str(count), _share(count, audit)] for name, count in audit.modalities.items()]
        yield from _table(["modality", "samples", "share"], rows)
        yield ""
        header = ["column", "kind", "missing", "share", "distinct", "AUC"]
        rows = [_column(fact, audit) for fact in audit.columns]
        if any(fact.illegal for fact in audit.columns):
            header.insert(4, "illegal")
            for row, fact in zip(rows, audit.columns, strict=True):
                row.insert(4, str(fact.illegal))
        yield from _table(header, rows)
        if any(fact.auc is not None for fact in audit.columns):
            yield "  AUC: what the column reaches by itself, cross-validated by subject; 0.5 or"
            yield "  less is nothing."
        yield ""
    if sum(audit.files.values()):
        decoded, remembered = audit.files["decoded"], audit.files["remembered"]
        now = f"{counted(decoded, 'file')} decoded now"
        yield f"{now}, {remembered} known to be whole since an earlier audit."
    for warning in audit.warnings:
        yield textwrap.fill(
            f"warning: {tidy(warning.message)}", _WIDTH, subsequent_indent="  ", break_on_hyphens=False
        )
    n_errors, n_warnings = len(audit.errors), len(audit.warnings)
    yield f"{_count(n_errors, 'error')}, {_count(n_warnings, 'warning')}."


def _column(fact: ColumnFacts, audit: Audit) -> list[str]:
    auc = "" if fact.auc is None else f"{fact.auc:.3f}"
    return [
        fact.name,
        fact.kind,
        str(fact.missing),
        _share(fact.missing, audit),
        str(fact.distinct),
        auc,
    ]


def _share(count: int, audit: Audit) -> str:
    return f"{100 * count / audit.samples:.0f} %"


def _count(number: int, noun: str) -> str:
    return counted(number, noun) if number else f"no {noun}s"


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    """Yields a table: texts to the left, numbers to the right, a long name on a line of its own."""
    n_texts = sum(name in ("class", "modality", "column", "kind") for name in header)
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    widths[0] = min(widths[0], _WIDTH - 2 - sum(2 + width for width in widths[1:]))
    for row in [header, *rows]:
        first, *others = row
        if len(first) > widths[0]:
            yield f"  {first}"
            first = ""
        cells = [first, *others]
        texts = [
            cell.ljust(width) if i < n_texts else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        yield ("  " + "  ".join(texts)).rstrip()
