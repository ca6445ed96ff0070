"""`fusionkit sweep`: several variants of a recipe, computed once each and compared."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusionkit.cli.places import DataRoot, RunsRoot, StoreRoot, make_places
from fusionkit.cli.sweep_progress import show_sweep

if TYPE_CHECKING:
    from fusionkit.sweep import Experiments


def run(
    context: typer.Context,
    sweep: Annotated[Path, typer.Argument(metavar="SWEEP", help="The sweep file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH=VALUE", help="Changes of every variant, such as stages.fuse.epochs=3."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="How many experiments at a time.")] = 1,
    data_root: DataRoot = None,
    store: StoreRoot = None,
    runs: RunsRoot = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Show no progress.")] = False,
) -> None:
    """Run and compare the variants of a recipe; what the store holds is not computed again.

    fusionkit sweep recipes/paper/table4.yaml

    fusionkit sweep recipes/paper/table4.yaml --jobs 2 training.threads=1
    """
    from fusionkit.recipe.sweep import load_sweep

    registry = context.obj.registry
    loaded = load_sweep(sweep, registry, overrides or [], data_root=data_root)
    from fusionkit.sweep import pinned, run_experiments
    from fusionkit.sweep_report import build_table, check_writable, label_of, write_sweep
    from fusionkit.sweep_tables import table_text

    loaded = pinned(loaded, jobs)
    places = make_places(data_root, store, runs)
    check_writable(places.runs, loaded.sweep.name)
    recipes = {label_of(one, loaded): one.loaded for one in loaded.experiments}
    with show_sweep(list(recipes), quiet=quiet) as tell:
        done = run_experiments(recipes, registry, places, tell, jobs)
    if not done.results:
        _raise_failures(done, recipes)
    table = build_table(loaded, done)
    folder = write_sweep(places.runs, loaded, table, registry)
    if as_json:
        print(json.dumps({"folder": str(folder), "computed": done.computed, "table": table.entry}))
    else:
        print(table_text(table.entry))
        counted = f"{done.computed} experiments computed" if done.computed else "all from the store"
        print(f"Files: {folder}\n({counted})")
    _raise_failures(done, recipes)


def _raise_failures(done: Experiments, labels: Iterable[str]) -> None:
    """Raises the error of the file's first failure with the problems of all; the others have their table."""
    failures = {label: done.failures[label] for label in labels if label in done.failures}
    if failures:
        first = next(iter(failures.values()))
        raise type(first)([f"{label}: {text}" for label, e in failures.items() for text in e.problems])
