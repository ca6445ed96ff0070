"""`fusionkit doctor`: versions, device, precision, disk, plugins, and what is wrong with them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from fusionkit.cli.places import DataRoot, StoreRoot, make_places


def run(
    context: typer.Context,
    data_root: DataRoot = None,
    store: StoreRoot = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look at the machine and the plugins; exit 8 if something would stop a run."""
    from fusionkit import __version__
    from fusionkit.recipe.schema import TrainingNode
    from fusionkit.training.device import choose_device, describe_machine

    places = make_places(data_root, store)
    registry = context.obj.all_plugins
    device = choose_device(TrainingNode())
    folders = {"store": places.store, "runs": places.runs}
    found: dict[str, Any] = {
        "fusionkit": __version__,
        **describe_machine(),
        "device": device.type,
        "precision": f"{device.precision} ({device.reason})",
        "threads": device.threads,
        "data root": _describe_folder(places.data),
        "shared memory": _free(Path("/dev/shm")),
        **{name: f"{path} ({_writable(path)}, {_free(path)})" for name, path in folders.items()},
        "plugins": {plugin.name: plugin.version for plugin in registry.plugins.values()},
        "broken plugins": dict(registry.broken),
    }
    refused = [name for name, path in folders.items() if _writable(path) != "can be written"]
    if as_json:
        print(json.dumps({**found, "problems": refused}))
    else:
        _print(found)
    for name in refused:
        typer.echo(f"error: {name}: {folders[name]} cannot be written. Choose another folder.", err=True)
    if refused:
        raise typer.Exit(8)


def _print(found: dict[str, Any]) -> None:
    for name, value in found.items():
        if isinstance(value, dict):
            print(f"{name}:" + ("" if value else " none"))
            for key, text in value.items():
                print(f"  {key}: {text}")
        else:
            print(f"{name}: {value if value is not None else 'none'}")


def _existing(path: Path) -> Path:
    """Returns the folder itself, or the nearest one above it that is there."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _writable(path: Path) -> str:
    above = _existing(path)
    return "can be written" if above.is_dir() and os.access(above, os.W_OK | os.X_OK) else "cannot be written"


def _free(path: Path) -> str:
    return f"{shutil.disk_usage(_existing(path)).free / 2**30:.1f} GiB free"


def _describe_folder(path: Path) -> str:
    return f"{path} ({'there' if path.is_dir() else 'not there'})"
