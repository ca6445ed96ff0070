"""What must hold of every source."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from fusionkit.data.manifest import Manifest
from fusionkit.errors import DataError
from fusionkit.interfaces import SourceContext
from fusionkit.model import calling
from fusionkit.recipe.components import resolve_files
from fusionkit.specs import ColumnSpec, SourceSpec
from fusionkit.testing.case import BreachError, Case, DoesNotApplyError, check, require


@check("source")
def check_known_before_reading(case: Case) -> None:
    """Schema, classes and `simulated` are known before anything is read, and `build` writes nothing."""
    source = case.build()
    schema, classes = source.schema, source.classes
    is_schema = bool(schema) and all(isinstance(spec, ColumnSpec) for spec in schema.values())
    require(case, is_schema, "its `schema` does not map columns to ColumnSpec.")
    is_right = isinstance(classes, tuple) and len(set(classes)) == len(classes) != 1
    require(case, is_right, f"its `classes` are not a tuple of two names or more, or none ({classes!r}).")
    is_said = isinstance(source.simulated, bool)
    require(case, is_said, f"its `simulated` is no truth value ({source.simulated!r}).")
    require(case, not list(case.folder.iterdir()), "writes files before it is asked to read.")


@check("source")
def check_manifest(case: Case) -> None:
    """`read` gives a manifest as declared: schema, classes, `simulated`; unique samples, known outcomes."""
    source, manifest = _read(case)
    require(case, isinstance(manifest, Manifest), f"`read` gives {type(manifest).__name__}, no Manifest.")
    require(case, not manifest.problems, f"finds fault with its own example files ({manifest.problems[:1]}).")
    declared = dict(source.schema), source.classes, source.simulated
    found = dict(manifest.schema), manifest.classes, manifest.is_simulated
    require(
        case, declared == found, "its manifest has another schema, other classes, or another `simulated`."
    )
    n_rows = len(manifest)
    lengths = {len(manifest.subjects), len(manifest.outcomes), manifest.cells.height}
    require(case, n_rows > 0 and lengths == {n_rows}, f"its manifest's lengths differ ({n_rows}, {lengths}).")
    require(case, len(set(manifest.samples)) == n_rows, "names a sample twice.")
    unknown = {str(outcome) for outcome in manifest.outcomes} - {*manifest.classes, "None"}
    require(case, not unknown, f"gives outcomes that are no classes ({', '.join(sorted(unknown))}).")
    absent = set(manifest.schema) - set(manifest.cells.columns)
    require(case, not absent, f"its cells lack columns of its schema ({', '.join(sorted(absent))}).")
    for row in range(n_rows):
        manifest.cells_of(row, list(manifest.schema))


@check("source")
def check_read_is_repeatable(case: Case) -> None:
    """Reading twice gives the same manifest: another copy, another cache, another number of processes."""
    first, again = (_told(_read(case, f"cache{workers}", workers)[1]) for workers in (1, 2))
    changed = [name for name in first if first[name] != again[name]]
    require(case, not changed, f"a second reading gives other {', '.join(changed)}.")


def _read(case: Case, cache: str = "cache", workers: int = 1) -> tuple[Any, Any]:
    card, root = cast(SourceSpec, case.card), case.folder / "data"
    root.mkdir(exist_ok=True)
    if card.example_files is not None:
        with calling(case.id, "example_files"):
            card.example_files(case.config, root)
    source = case.build(config=resolve_files(case.config, root))
    try:
        with calling(case.id, "read"):
            return source, source.read(SourceContext(root, _made(case.folder / cache), workers))
    except DataError as error:
        if card.example_files is None:
            raise DoesNotApplyError("its data are not here, and its card has no `example_files`") from None
        raise BreachError(f"{case.id}: cannot read its own example files ({error.problems[0]})") from error


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def _told(manifest: Manifest) -> dict[str, Any]:
    """Returns what a manifest says, with the contents of its files instead of their places."""
    cells = [
        {
            name: cell.read_bytes() if isinstance(cell, Path) and cell.is_file() else str(cell)
            for name, cell in manifest.cells_of(row, list(manifest.schema)).items()
        }
        for row in range(len(manifest))
    ]
    outcomes = [manifest.outcomes, manifest.subject_outcomes]
    return {
        "samples": list(manifest.samples),
        "subjects": list(manifest.subjects),
        "outcomes": [None if some is None else list(some) for some in outcomes],
        "cells": cells,
        "rows left out": dict(manifest.dropped),
        "checksums": {name: list(sums) for name, sums in manifest.checksums.items()},
    }
