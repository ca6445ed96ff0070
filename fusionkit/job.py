"""A job: a further process of a run or a sweep, which computes into the store for the one that started it."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from fusionkit.errors import FusionkitError, one_line
from fusionkit.interfaces import Tell
from fusionkit.locks import Busy
from fusionkit.prepare import Places, prepare
from fusionkit.recipe.load import load_text
from fusionkit.registry import Registry
from fusionkit.sweep import Worker
from fusionkit.training.experiment import Experiment
from fusionkit.training.jobs import work_through
from fusionkit.training.stages import Plan, plan_steps, run_steps

TOLD = (
    "stage_started",
    "stage_continued",
    "stage_finished",
    "epoch_finished",
    "memory_full",
    "still_reading",
    "job_failed",
    "job_finished",
    "experiment_started",
    "experiment_finished",
    "experiment_failed",
)


def main(assignment: Mapping[str, Any], lifeline: TextIO, channel: TextIO) -> None:
    """Computes what it is told.

    Args:
        assignment: The recipe, the plugins and the folders, and which of how many jobs this is.
        lifeline: Ends when the process that started this one does.
        channel: Where is told what happens, one JSON value a line.
    """
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    begun: set[str] = set()

    def tell(name: str, data: Mapping[str, Any]) -> None:
        # what another process holds is begun again and again until it is free
        is_new = name != "stage_started" or data["address"] not in begun
        if name in TOLD and is_new:
            begun.add(data.get("address", ""))
            print(json.dumps({"event": name, **data}, default=str), file=channel, flush=True)

    try:
        _compute(assignment, tell)
        tell("job_finished", {})
    except BaseException as error:  # a plugin may raise anything; the other processes meet it, too
        problems = error.problems if isinstance(error, FusionkitError) else [one_line(error)]
        trace = "".join(traceback.format_exception(error))
        tell("job_failed", {"problems": problems, "traceback": trace})


def _end_with(lifeline: TextIO) -> None:
    """Ends this process, and all of its group, as soon as the one that started it is gone."""
    lifeline.read()
    os.killpg(0, signal.SIGKILL)


def _compute(assignment: Mapping[str, Any], tell: Tell) -> None:
    """Computes what no other process is at: its own share first, then the others', until nothing is left."""
    registry = Registry.discover(assignment["plugins"])
    places = Places(Path(assignment["data"]), Path(assignment["store"]), Path(assignment["runs"]))
    if "recipes" in assignment:  # of a sweep
        recipes = {
            label: load_text(text, registry, data_root=places.data)
            for label, text in assignment["recipes"].items()
        }
        Worker(recipes, places, tell).work(list(recipes))
        return
    loaded = load_text(assignment["recipe"], registry, data_root=places.data)
    prepared = prepare(loaded, places, tell, waits=False)
    units = list(itertools.product(enumerate(prepared.folds), range(loaded.recipe.seeds)))
    first = assignment["number"] * len(units) // assignment["jobs"]
    models = [
        (experiment, plan_steps(experiment, fold, member), {"fold": number + 1, "member": member + 1})
        for (number, fold), member in units[first:] + units[:first]
        for experiment in prepared.variants.values()
    ]
    work_through(models, lambda model: _is_done(*model))


def _is_done(experiment: Experiment, plan: Plan, place: Mapping[str, int]) -> bool:
    """Computes the steps of one model; says whether all are done, or another process is at one of them."""
    try:
        run_steps(experiment, plan, **place)
    except Busy:
        return False
    return True
