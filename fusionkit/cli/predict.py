"""`fusionkit predict`: a learned model on new rows."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fusionkit.cli.places import DataRoot, StoreRoot, make_places
from fusionkit.cli.progress import show_progress
from fusionkit.errors import UsageError, counted

if TYPE_CHECKING:
    from fusionkit.learned import LearnedRun
    from fusionkit.predict import Answers


def run(
    context: typer.Context,
    run_folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/NAME/latest.")
    ],
    rows: Annotated[
        Path, typer.Argument(metavar="ROWS", help="A CSV or Parquet table with the recipe's columns.")
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="What its paths of files are relative to; else the table's folder."
        ),
    ] = None,
    sample: Annotated[
        str | None, typer.Option("--id", metavar="COLUMN", help="Column of the rows' ids; they may repeat.")
    ] = None,
    encoding: Annotated[
        Literal["utf-8", "latin-1"], typer.Option(help="How the bytes of a CSV table spell its text.")
    ] = "utf-8",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write there; else to standard output."),
    ] = None,
    data_root: DataRoot = None,
    store: StoreRoot = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of CSV.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Show no progress.")] = False,
) -> None:
    """Predict rows without outcome, in their order.

    Each answer says what was missing and which model gave it.

    fusionkit predict runs/breast_rfn/latest rows.csv --images photos --id case
    """
    from fusionkit.learned import open_run
    from fusionkit.predict import predict, read_rows
    from fusionkit.run_folder import followed
    from fusionkit.store import write_atomic

    _check_output(output, rows, run_folder)
    places = make_places(data_root, store)
    learned = open_run(followed(run_folder), context.obj.registry, places.data)
    manifest = read_rows(learned, rows, images, sample, encoding)
    with show_progress(quiet=quiet) as tell:
        answers = predict(learned, manifest, places, tell)
    if answers.changes:
        changed = "; ".join(answers.changes)
        typer.echo(f"warning: not as in the run, so predictions may differ: {changed}.", err=True)
    text = _as_json(answers, learned) if as_json else answers.to_csv()
    if output is None:
        print(text, end="")
    else:
        write_atomic(output, text.encode())
        typer.echo(f"{counted(len(answers.rows), 'row')}: {output}", err=True)


def _as_json(answers: Answers, learned: LearnedRun) -> str:
    from fusionkit.recipe.task_nodes import OF_NUMBERS

    entry = dataclasses.asdict(answers)
    del entry["kind"]  # `columns` says what the numbers are
    if answers.kind not in OF_NUMBERS:
        entry["rows"] = [
            {"probabilities" if key == "predictions" else key: value for key, value in row.items()}
            for row in entry["rows"]
        ]
        entry["thresholds"] = {name: learned.thresholds[name] for name in learned.models}
    return json.dumps(entry) + "\n"


def _check_output(output: Path | None, rows: Path, run_folder: Path) -> None:
    """Raises UsageError where the answers would be written over what they are made of."""
    if output is None:
        return
    target, run = (Path(os.path.realpath(path)) for path in (output, run_folder))
    if target == Path(os.path.realpath(rows)):
        raise UsageError(f"--output: the table of rows itself ({output}). Name another file.")
    if target.is_relative_to(run):
        raise UsageError(f"--output: inside the run, which must stay as it is ({output}). Name another file.")
    if target.is_dir():
        raise UsageError(f"--output: a folder ({output}). Name a file.")
