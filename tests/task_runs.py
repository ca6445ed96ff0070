"""Runs of the toy of tasks, for the tests of every task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from task_toys import RECIPE

from fusionkit.prepare import Places
from fusionkit.recipe.load import LoadedRecipe, load_text
from fusionkit.registry import Registry
from fusionkit.run import RunResult, run

HERE = Path(__file__).parent


def tell(name: str, data: Any) -> None:
    """Hears of everything, and does nothing."""


def places_in(home: Path) -> Places:
    """Returns the folders of a run."""
    return Places(home, home / "store", home / "runs")


def load(task: str, *overrides: str, cells: Any = None) -> tuple[LoadedRecipe, Registry]:
    """Loads the toy's recipe with a task."""
    registry = Registry.discover([str(HERE / "toys.py"), str(HERE / "task_toys.py")])
    words = [f"source.cells={json.dumps(cells)}"] if cells else []
    return load_text(RECIPE.replace("TASK", task), registry, overrides=[*overrides, *words]), registry


def run_task(home: Path, task: str, *overrides: str, cells: Any = None) -> RunResult:
    """Runs the toy's recipe with a task."""
    loaded, registry = load(task, *overrides, cells=cells)
    return run(loaded, registry, places_in(home), tell)
