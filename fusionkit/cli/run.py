"""`fusionkit run`: a recipe from data to report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusionkit.cli.places import DataRoot, RunsRoot, StoreRoot, make_places
from fusionkit.cli.progress import show_progress
from fusionkit.errors import counted

if TYPE_CHECKING:
    from fusionkit.prepare import Places
    from fusionkit.recipe.load import LoadedRecipe


def run(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="PATH=VALUE", help="Changes, such as stages.fuse.epochs=3.")
    ] = None,
    data_root: DataRoot = None,
    store: StoreRoot = None,
    runs: RunsRoot = Path("runs"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be computed; compute nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Show no progress.")] = False,
) -> None:
    """Run a recipe; what the store holds is not computed again.

    fusionkit run recipes/breast_rfn.yaml

    fusionkit run recipes/breast_rfn.yaml modalities.emr.raiser.use=copy
    """
    from fusionkit.recipe.load import load_recipe

    registry = context.obj.registry
    loaded = load_recipe(recipe, registry, overrides or [], data_root=data_root)
    from fusionkit.run import run as run_recipe

    places = make_places(data_root, store, runs)
    if dry_run:
        _dry_run(loaded, places, as_json=as_json)
        return
    with show_progress(quiet=quiet) as tell:
        result = run_recipe(loaded, registry, places, tell)
    if as_json:
        print(
            json.dumps({"folder": str(result.folder), "computed": result.computed, "report": result.report})
        )
        return
    from fusionkit.evaluation.summary import report_text

    print(report_text(result.report))
    stages = f"{counted(result.computed, 'stage')} computed."
    print(stages if result.computed else "Nothing computed, all from the store.")
    print(f"Files: {result.folder}")


def _dry_run(loaded: LoadedRecipe, places: Places, *, as_json: bool) -> None:
    from fusionkit.dry_run import plan_text, plan_work

    with show_progress(quiet=True) as tell:
        work = plan_work(loaded, places, tell)
    print(json.dumps(work) if as_json else plan_text(work))
