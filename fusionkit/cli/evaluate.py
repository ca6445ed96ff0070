"""`fusionkit evaluate`: a learned run on other data that have outcomes."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusionkit.cli.places import DataRoot, StoreRoot, make_places
from fusionkit.cli.progress import show_progress

if TYPE_CHECKING:
    from fusionkit.run import RunResult


def run(
    context: typer.Context,
    run_folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/NAME/latest.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH=VALUE", help="How the other data differ, such as source.outcome=label."),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option("--data", metavar="TABLE", help="The other table, relative to here."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="What its paths of files are relative to; else the table's folder."
        ),
    ] = None,
    exclude_seen: Annotated[
        bool, typer.Option("--exclude-seen", help="Leave out subjects whom the run learned from.")
    ] = False,
    new_subjects: Annotated[
        bool,
        typer.Option("--new-subjects", help="The subjects are other people, even with the same ids."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FOLDER", help="Where its folder goes; else RUN/evaluations."),
    ] = None,
    data_root: DataRoot = None,
    store: StoreRoot = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Show no progress.")] = False,
) -> None:
    """Test a learned run on other data with outcomes.

    All that it learned stays: weights, scaling, threshold, classes.

    fusionkit evaluate runs/my_study/latest --data other/rows.csv

    fusionkit evaluate runs/breast_rfn/latest source.seed=1 --new-subjects
    """
    from fusionkit.evaluate import Seen, evaluate, source_overrides
    from fusionkit.learned import open_run
    from fusionkit.run_folder import followed

    run_folder = followed(run_folder)
    places = make_places(data_root, store)
    registry = context.obj.registry
    changes = [*source_overrides(run_folder, table, images), *(overrides or [])]
    learned = open_run(run_folder, registry, places.data, changes)
    seen = Seen(exclude_seen, new_subjects)
    with show_progress(quiet=quiet) as tell:
        result = evaluate(learned, registry, places, tell, seen, output or run_folder / "evaluations")
    if as_json:
        print(json.dumps({"folder": str(result.folder), "report": result.report}))
        return
    _print(result, run_folder, changes)


def _print(result: RunResult, run_folder: Path, changes: Sequence[str]) -> None:
    from fusionkit.evaluation.summary import report_text

    data = f"other data ({', '.join(changes)})" if changes else "its own data"
    print(textwrap.fill(f"Run {run_folder}, unchanged, on {data}.", 80, break_on_hyphens=False))
    print(report_text(result.report))
    print(f"Files: {result.folder}")
