"""`fusionkit sweep`: several variants of a recipe, computed once each and compared."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusionkit.cli.places import DataRoot, RunsRoot, StoreRoot, make_places
from fusionkit.cli.sweep_progress import show_sweep

if TYPE_CHECKING:
    from fusionkit.errors import FusionkitError
    from fusionkit.prepare import Places
    from fusionkit.recipe.load import LoadedRecipe


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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be computed; compute nothing.")
    ] = False,
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
    from fusionkit.sweep_report import build_table, check_writable, experiment_label, write_sweep
    from fusionkit.sweep_tables import table_text

    loaded = pinned(loaded, jobs)
    places = make_places(data_root, store, runs)
    recipes = {experiment_label(one, loaded): one.loaded for one in loaded.experiments}
    if dry_run:
        _dry_run(loaded.sweep.name, recipes, places, as_json=as_json)
        return
    check_writable(places.runs, loaded.sweep.name)
    with show_sweep(list(recipes), quiet=quiet) as tell:
        done = run_experiments(recipes, registry, places, tell, jobs)
    if not done.results:
        _raise_failures(done.failures, recipes)
    table = build_table(loaded, done)
    folder = write_sweep(places.runs, loaded, table, registry)
    if as_json:
        print(json.dumps({"folder": str(folder), "computed": done.computed, "table": table.entry}))
    else:
        print(table_text(table.entry))
        counted = f"{done.computed} experiments computed" if done.computed else "all from the store"
        print(f"Files: {folder}\n({counted})")
    _raise_failures(done.failures, recipes)


def _dry_run(name: str, recipes: Mapping[str, LoadedRecipe], places: Places, *, as_json: bool) -> None:
    from fusionkit.dry_run import plan_sweep, sweep_plan_text

    with show_sweep([], quiet=True) as tell:
        plan = plan_sweep(recipes, places, tell)
    print(json.dumps({"sweep": name, **plan.work}) if as_json else sweep_plan_text(name, plan.work))
    _raise_failures(plan.failures, recipes)


def _raise_failures(found: Mapping[str, FusionkitError], labels: Iterable[str]) -> None:
    """Raises the error of the file's first failure with the problems of all; the others have their table."""
    failures = {label: found[label] for label in labels if label in found}
    if failures:
        first = next(iter(failures.values()))
        said: dict[str, list[str]] = {}
        for label, error in failures.items():
            for text in error.problems:
                said.setdefault(text, []).append(label)
        raise type(first)([f"{_named(labels)}: {text}" for text, labels in said.items()])


def _named(labels: Sequence[str]) -> str:
    """Returns the experiments of one problem: the first, and how many more."""
    return labels[0] + (f" and {len(labels) - 1} more" if len(labels) > 1 else "")
