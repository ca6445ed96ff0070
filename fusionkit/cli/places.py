"""The folders that a command works with: options, environment, defaults."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fusionkit.prepare import Places

DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root", metavar="FOLDER", help="Where the data lie; else $FUSIONKIT_DATA, else data/."
    ),
]
StoreRoot = Annotated[
    Path | None,
    typer.Option(
        "--store", metavar="FOLDER", help="The store; else $FUSIONKIT_STORE, else .fusionkit/store."
    ),
]
RunsRoot = Annotated[Path, typer.Option("--runs", metavar="FOLDER", help="Where run folders go.")]


def store_root(store: Path | None) -> Path:
    """Returns the store's folder."""
    return store or Path(os.environ.get("FUSIONKIT_STORE") or ".fusionkit/store")


def make_places(data_root: Path | None, store: Path | None, runs: Path = Path("runs")) -> Places:
    """Returns the folders that options and environment name."""
    from fusionkit.prepare import Places

    return Places(data_root or Path(os.environ.get("FUSIONKIT_DATA") or "data"), store_root(store), runs)
