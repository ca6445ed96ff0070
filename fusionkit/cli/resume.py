"""`fusionkit resume`: continues a run that was interrupted or failed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fusionkit.cli.places import DataRoot, RunsRoot, StoreRoot
from fusionkit.cli.run import run as run_recipe
from fusionkit.cli.session import Session, is_absent


def run(
    context: typer.Context,
    run_folder: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="Its folder; by default that of the newest run.")
    ] = None,
    data_root: DataRoot = None,
    store: StoreRoot = None,
    runs: RunsRoot = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Show no progress.")] = False,
) -> None:
    """Continue a run that was interrupted or failed.

    It goes on from the store, in a new run folder. The same command as before does the same; this one
    looks up the recipe and its changes.
    """
    from fusionkit.run_folder import find_unfinished, hinting_at_plugins, read_marker

    folder = find_unfinished(run_folder, runs)
    given = read_marker(folder)
    plugins = given.get("plugins")
    if isinstance(plugins, list):
        # one that has moved may have been named anew; else the recipe says what it lacks
        there = [name for name in map(str, plugins) if not is_absent(name)]
        context.obj = Session(tuple(dict.fromkeys([*context.obj.plugins, *there])))
    typer.echo(f"continuing {folder}", err=True)
    with hinting_at_plugins(folder, context.obj.all_plugins):
        run_recipe(
            context,
            folder / "resolved.yaml",
            data_root=data_root or _folder(given, "data_root"),
            store=store or _folder(given, "store"),
            runs=runs if run_folder is None else folder.parent.parent,
            as_json=as_json,
            quiet=quiet,
        )


def _folder(given: dict[str, object], name: str) -> Path | None:
    text = given.get(name)
    return Path(text) if isinstance(text, str) else None
