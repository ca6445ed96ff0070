"""A job: one of a run's processes, which computes stages into the store for the one that started it."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusionkit.errors import FusionkitError
from fusionkit.locks import Busy
from fusionkit.prepare import Places, prepare
from fusionkit.recipe.load import load_text
from fusionkit.registry import Registry
from fusionkit.training.experiment import Experiment, Tell
from fusionkit.training.stages import Plan, plan_steps, run_steps

PAUSE_SECONDS = 1.0
"""Before asking again whether what another process is at is done."""
TOLD = (
    "stage_started",
    "stage_finished",
    "epoch_finished",
    "memory_full",
    "still_reading",
    "job_failed",
)


def main() -> None:
    """Reads the task from standard input; tells on standard output what happens, one JSON value a line."""
    task = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_starter, daemon=True).start()
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a plugin prints is no event

    begun: set[str] = set()

    def tell(name: str, data: Mapping[str, Any]) -> None:
        # what another process holds is begun again and again until it is free
        is_new = name != "stage_started" or data["address"] not in begun
        if name in TOLD and is_new:
            begun.add(data.get("address", ""))
            print(json.dumps({"event": name, **data}, default=str), file=channel, flush=True)

    try:
        _compute(task, tell)
    except FusionkitError as error:
        # the process that started this one meets the same problem, and says it to the user
        tell("job_failed", {"problems": error.problems})


def _end_with_starter() -> None:
    """Waits for the end of standard input: then the process that started this one is gone."""
    sys.stdin.read()
    os._exit(0)


def _compute(task: Mapping[str, Any], tell: Tell) -> None:
    """Computes what no other process is at: its own share first, then the others', until nothing is left."""
    registry = Registry.discover(task["plugins"])
    places = Places(Path(task["data"]), Path(task["store"]), Path(task["runs"]))
    loaded = load_text(task["recipe"], registry, data_root=places.data)
    prepared = prepare(loaded, places, tell, waits=False)
    units = [(fold, member) for fold in prepared.folds for member in range(loaded.recipe.seeds)]
    first = task["number"] * len(units) // task["jobs"]
    left = [
        (experiment, plan_steps(experiment, fold, member))
        for fold, member in units[first:] + units[:first]
        for experiment in prepared.variants.values()
    ]
    while left:
        left = [(experiment, plan) for experiment, plan in left if not _is_done(experiment, plan)]
        if left:
            time.sleep(PAUSE_SECONDS)


def _is_done(experiment: Experiment, plan: Plan) -> bool:
    """Computes the steps of one model; says whether all are done, or another process is at one of them."""
    try:
        run_steps(experiment, plan)
    except Busy:
        return False
    return True


if __name__ == "__main__":
    main()
