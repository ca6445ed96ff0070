"""What a run or sweep would compute, what the store already holds, and a rough cost; computes no stage."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fusionkit.data.batches import make_units
from fusionkit.data.splits import Fold
from fusionkit.errors import FusionkitError, ResourceError, counted
from fusionkit.interfaces import Tell
from fusionkit.model import compute_part
from fusionkit.prepare import Places, Prepared, plan_all, prepare
from fusionkit.recipe.load import LoadedRecipe
from fusionkit.recipe.schema import LoopOptions
from fusionkit.store import using
from fusionkit.sweep import Worker
from fusionkit.training.experiment import Experiment, Feed, Origin
from fusionkit.training.stages import Plan, Step

PROBE_ROWS = 32
TRAINING_COST = 3.0
"""A training pass costs about three forward passes."""
Features = dict[tuple[str, str], set[bytes]]
"""Of each modality and frozen prefix: the keys of rows that the store lacks."""


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep would compute, as JSON values, and which experiments could not be planned, and why."""

    work: dict[str, Any]
    failures: Mapping[str, FusionkitError]


def plan_work(loaded: LoadedRecipe, places: Places, tell: Tell) -> dict[str, Any]:
    """Plans every model of a run and compares it with the store; JSON values."""
    with using(places.store):
        return _plan_work(loaded, places, tell)


def _plan_work(loaded: LoadedRecipe, places: Places, tell: Tell) -> dict[str, Any]:
    prepared = prepare(loaded, places, tell, fetches=False)
    features: Features = {}
    steps = _steps(prepared, features)
    todo = {address: step for address, step in steps.items() if not prepared.main.store.has(address)}
    encoded = _n_rows(features)
    return {
        "recipe": loaded.recipe.name,
        "subjects": len(set(prepared.main.manifest.subjects)),
        "samples": len(prepared.main.manifest),
        "folds": len(prepared.folds),
        "models": list(prepared.variants),
        "steps": [_describe(step, address in todo) for address, step in steps.items()],
        "features": encoded,
        "seconds": round(_seconds(prepared, list(todo.values()), encoded), 1),
        "device": vars(prepared.main.device),
    }


def plan_sweep(recipes: Mapping[str, LoadedRecipe], places: Places, tell: Tell) -> SweepPlan:
    """Plans the experiments of a sweep that the store has no result of, and says what they share."""
    with using(places.store):
        worker = Worker(recipes, places, tell)
        missing = set(worker.missing())
        features: Features = {}
        seen: dict[str, str] = {}  # address of a result -> the first experiment that has it
        stored: dict[str, bool] = {}  # address of a step -> whether the store has it
        entries: list[dict[str, Any]] = []
        for label in recipes:
            if label in worker.failures:
                continue
            first = seen.setdefault(worker.address(label), label)
            if first in worker.failures:
                worker.failures[label] = worker.failures[first]
                continue
            entry: dict[str, Any] = {"experiment": label, "stored": label not in missing}
            if label in missing and first != label:
                entry["same_as"] = first
            elif label in missing:
                try:
                    steps = _steps(worker.prepare(label, tell, fetches=False), features)
                except ResourceError:
                    raise
                except FusionkitError as error:
                    worker.failures[label] = error
                    continue
                shared = len(steps.keys() & stored.keys())
                new = {address: worker.store.has(address) for address in steps.keys() - stored.keys()}
                stored |= new
                counts = {"stored": sum(new.values()), "to_compute": len(new) - sum(new.values())}
                entry["steps"] = {"all": len(steps), "of_others": shared, **counts}
            entries.append(entry)
    failed = [label for label in recipes if label in worker.failures]
    work = {"experiments": entries, "failed": failed, "features": _n_rows(features)}
    return SweepPlan(work, worker.failures)


def _steps(prepared: Prepared, features: Features) -> dict[str, Step]:
    """Returns the steps of every model by address, and adds the features that they lack."""
    steps: dict[str, Step] = {}
    for name, fold, _, plan in plan_all(prepared):
        steps |= {step.address: step for step in plan.steps}
        _add_missing_features(prepared.variants[name], plan, fold, features)
    return steps


def _n_rows(features: Features) -> dict[str, int]:
    """Returns how many rows of each modality are to encode, where any are."""
    encoded: dict[str, int] = {}
    for (modality, _), keys in features.items():
        encoded[modality] = encoded.get(modality, 0) + len(keys)
    return {modality: count for modality, count in encoded.items() if count}


def _add_missing_features(experiment: Experiment, plan: Plan, fold: Fold, features: Features) -> None:
    for name in Feed(experiment, plan.origins).stored:
        reader = experiment.reader(name)
        origin = plan.origins[f"{name}.encoder"]
        table = experiment.table(name, origin)
        found = features.setdefault((name, table.folder.name), set())
        for rows, training in ((fold.train, True), ((*fold.validation, *fold.test), False)):
            present = [row for row in rows if reader.key(row)]
            n_draws = experiment.n_draws([name]) if training else 1
            units = make_units(present, reader.n_views(training=training), n_draws)
            keys = reader.feature_keys(units, training=training)
            found |= set(keys[table.missing(keys)].tolist())


def _describe(step: Step, is_todo: bool) -> dict[str, Any]:
    return {
        "verb": step.verb,
        "stage": step.stage.name,
        "parts": list(step.learned),
        "rows": len(step.rows),
        "address": step.address,
        "stored": not is_todo,
    }


def _rows_per_second(experiment: Experiment, modality: str) -> float:
    """Measures how many rows of a file modality its encoder reads and encodes in a second."""
    reader = experiment.reader(modality)
    first = range(min(len(experiment.manifest), 4 * PROBE_ROWS))
    rows = [row for row in first if reader.key(row)][:PROBE_ROWS]
    if not reader.is_stored or not rows:
        return float("inf")
    path = f"{modality}.encoder"
    seed = experiment.factory.loaded.recipe.seed
    encoder = experiment.module(path, Origin(experiment.factory.origin(path, seed), seed))
    best, n_tokens = float("inf"), experiment.factory.n_tokens(modality)
    for _ in range(3):
        started = time.perf_counter()
        raw = experiment.to_device(reader.read(make_units(np.array(rows), 1), training=False))
        with torch.inference_mode():
            compute_part(path, encoder, raw, n_tokens, experiment.device.autocast)
        best = min(best, time.perf_counter() - started)
    return len(rows) / best


def _seconds(prepared: Prepared, todo: list[Step], encoded: dict[str, int]) -> float:
    if not todo and not encoded:
        return 0.0
    speeds = {name: _rows_per_second(prepared.main, name) for name in prepared.main.modalities}
    total = sum(count / speeds[modality] for modality, count in encoded.items())
    for step in todo:
        for path in step.learned:
            modality = path.split(".")[0]
            if path.endswith(".encoder") and modality in speeds and isinstance(step.stage, LoopOptions):
                views = prepared.main.reader(modality).n_views(training=True)
                total += TRAINING_COST * len(step.rows) * views * step.stage.epochs / speeds[modality]
    return total


def plan_text(work: dict[str, Any]) -> str:
    """Returns the plan in plain words, at most 80 columns where names allow."""
    stored = sum(step["stored"] for step in work["steps"])
    todo = len(work["steps"]) - stored
    lines = [
        f"{work['recipe']}: {counted(work['samples'], 'sample')} of {counted(work['subjects'], 'subject')}, "
        f"{counted(work['folds'], 'fold')},",
        f"models: {', '.join(work['models'])}; on {work['device']['type']} in {work['device']['precision']}.",
        f"{counted(len(work['steps']), 'stage result')}: {stored} in the store, {todo} to compute.",
    ]
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for step in work["steps"]:
        groups.setdefault((step["stage"], step["verb"], ", ".join(step["parts"])), []).append(step)
    for (stage, verb, parts), members in groups.items():
        missing = sum(not step["stored"] for step in members)
        lines.append(f"  {stage}: {verb} {parts}: {missing} of {len(members)} to compute")
    lines += [
        f"  features of {name}: {counted(count, 'row')} to encode" for name, count in work["features"].items()
    ]
    if not (todo or work["features"]):
        lines.append("There is nothing to compute.")
    elif round(work["seconds"]):  # what a head or a record costs is not measured
        lines.append(
            f"Rough cost of the encoders: {_duration(work['seconds'])}; heads and records add to it."
        )
    return _wrapped(lines)


def sweep_plan_text(name: str, work: dict[str, Any]) -> str:
    """Returns what a sweep would compute, in plain words, at most 80 columns where names allow."""
    entries = work["experiments"]
    stored = sum(entry["stored"] for entry in entries)
    lines = [
        f"{name}: {counted(len(entries) + len(work['failed']), 'experiment')}: {stored} in the store, "
        f"{len(entries) - stored} to compute"
        + (f", {len(work['failed'])} that cannot be." if work["failed"] else ".")
    ]
    for entry in entries:
        counts = entry.get("steps")
        if counts is None:
            same = f"the same experiment as {entry['same_as']}" if "same_as" in entry else "in the store"
            lines.append(f"  {entry['experiment']}: {same}")
            continue
        shares = {
            "in the store": counts["stored"],
            "of experiments above": counts["of_others"],
            "to compute": counts["to_compute"],
        }
        told = [f"{count} {what}" for what, count in shares.items() if count]
        every = counted(counts["all"], "stage result")
        lines.append(f"  {entry['experiment']}: {every}{': ' if told else ''}{', '.join(told)}")
    todo = sum(entry["steps"]["to_compute"] for entry in entries if "steps" in entry)
    if stored < len(entries):
        lines.append(f"{counted(todo, 'stage result')} to compute in all.")
    lines += [
        f"  features of {modality}: {counted(count, 'row')} to encode"
        for modality, count in work["features"].items()
    ]
    return _wrapped(lines)


def _wrapped(lines: Sequence[str]) -> str:
    """Returns lines of at most 80 columns, where names allow."""
    return "\n".join(
        textwrap.fill(line, 80, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
        for line in lines
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
