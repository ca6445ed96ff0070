"""`fusionkit runs`: which runs there are, how each stands, and what may go."""

from __future__ import annotations

import contextlib
import json
import shutil
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from fusionkit.cli.places import RunsRoot
from fusionkit.cli.sizes import human
from fusionkit.errors import counted

app = typer.Typer(no_args_is_help=True, help="Look after the folders of runs.")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_(runs: RunsRoot = Path("runs"), as_json: AsJson = False) -> None:
    """List all runs, newest first, and how each stands."""
    from fusionkit.run_folder import find_runs, read_marker, status_of

    found: list[dict[str, Any]] = []
    for folder in reversed(find_runs(runs)):
        problems = read_marker(folder).get("problems")
        said = [str(problem) for problem in problems] if isinstance(problems, list) else []
        stands = {"status": status_of(folder), "problems": said}
        found.append({"run": str(folder), "bytes": _size(folder), **stands})
    if as_json:
        print(json.dumps(found))
        return
    width = shutil.get_terminal_size().columns
    for entry in found:
        status, _, details = entry["status"].partition(": ")
        print(f"{entry['run']}  {human(entry['bytes']):>8}  {status}")
        for line in [details, *entry["problems"][:1]]:
            if line:
                print("  " + textwrap.shorten(line, max(20, width - 2), placeholder="..."))
    n_left = sum(entry["status"] != "finished" for entry in found)
    more = f", {n_left} of them not finished" if n_left else ""
    print(f"{counted(len(found), 'run')} in {runs}{more}.")


@app.command("prune")
def prune(
    runs: RunsRoot = Path("runs"),
    older_than: Annotated[
        float, typer.Option(metavar="DAYS", min=0, help="Delete those that ended so long ago.")
    ] = 30.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Delete nothing; say what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete the folders of runs that were interrupted, killed or failed.

    Finished runs stay, and so do running ones. What a deleted run has computed is in the store: the same
    command again goes on from there.
    """
    from fusionkit.run_folder import prune_runs

    found = prune_runs(runs, older_than_days=older_than, dry_run=dry_run)
    if as_json:
        folders = {name: list(map(str, paths)) for name, paths in vars(found).items()}
        print(json.dumps({**folders, "dry_run": dry_run}))
        return
    for folder in found.gone:
        print(f"  {folder}")
    print(f"{counted(len(found.gone), 'unfinished run')} {'would be deleted' if dry_run else 'deleted'}.")
    if found.young:
        n_young = counted(len(found.young), "unfinished run")
        hint = "wait a minute" if older_than == 0 else "for all of them say --older-than 0"
        print(f"Not so old: {n_young}; {hint}.")
    for folder in found.live:
        print(f"Still running: {folder}.")


def _size(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a running run writes and renames
            size += path.stat().st_size if path.is_file() else 0
    return size
