"""`fusionkit store`: what is kept, how large it is, and what may go."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime
from typing import Annotated, Any

import typer

from fusionkit.cli.places import StoreRoot, store_root

app = typer.Typer(no_args_is_help=True, help="Look after what stages and encoders left.")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_(store: StoreRoot = None, as_json: AsJson = False) -> None:
    """List every artefact, feature file and checkpoint, newest first."""
    from fusionkit.store import list_entries

    entries = [entry for entry in list_entries(store_root(store)) if entry.kind != "sources"]
    if as_json:
        print(json.dumps([dataclasses.asdict(entry) for entry in entries]))
        return
    for entry in entries:
        when = datetime.fromtimestamp(entry.modified).strftime("%Y-%m-%d %H:%M")
        name = entry.name if len(entry.name) <= 20 else entry.name[:12]
        what = f"{entry.metadata.get('verb', '')} {', '.join(entry.metadata.get('parts', []))}".strip()
        print(f"{entry.kind:<11} {name:<13} {_size(entry.size):>9}  {when}  {what}")


@app.command("size")
def size(store: StoreRoot = None, as_json: AsJson = False) -> None:
    """Say how large the store is, by kind."""
    from fusionkit.store import list_entries

    kinds: dict[str, dict[str, Any]] = {}
    for entry in list_entries(store_root(store)):
        kind = kinds.setdefault(entry.kind, {"files": 0, "bytes": 0})
        kind["files"] += 1
        kind["bytes"] += entry.size
    if as_json:
        print(json.dumps({"store": str(store_root(store)), "kinds": kinds}))
        return
    print(f"{store_root(store)}:")
    for name, kind in kinds.items():
        print(f"  {name:<11} {kind['files']:>6} files {_size(kind['bytes']):>10}")
    print(
        f"  {'all':<11} {sum(k['files'] for k in kinds.values()):>6} files "
        f"{_size(sum(k['bytes'] for k in kinds.values())):>10}"
    )


@app.command("prune")
def prune_(
    store: StoreRoot = None,
    older_than: Annotated[
        float, typer.Option(metavar="DAYS", min=0, help="Delete what was not used for so long.")
    ] = 30.0,
    as_json: AsJson = False,
) -> None:
    """Delete old and broken files and what crashes left; what is deleted is computed again when needed."""
    from fusionkit.store import prune

    done = prune(store_root(store), older_than_days=older_than)
    if as_json:
        print(json.dumps({"files": done.files, "bytes": done.size, "users": done.users}))
        return
    print(f"{done.files} files deleted, {_size(done.size)}.")
    for user in done.users:
        print(f"In use by {user}: what it uses stays.")


def _size(n_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} GiB"
