"""A sweep's experiments: each computed once, by several processes, and kept in the store."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusionkit.core_parts import SCALE_VERSION
from fusionkit.data.digests import tree_digest
from fusionkit.data.manifest import Manifest
from fusionkit.errors import DataError, FusionkitError, ResourceError
from fusionkit.evaluation.aggregate import FoldPredictions, SampleRows
from fusionkit.interfaces import Tell
from fusionkit.locks import Busy
from fusionkit.prepare import Places, Prepared, prepare, read_manifest
from fusionkit.recipe.components import data_files
from fusionkit.recipe.load import LoadedRecipe, dump_yaml
from fusionkit.recipe.sweep import LoadedSweep, SweepExperiment
from fusionkit.recipe.task_nodes import outcome_columns
from fusionkit.registry import Registry, code_version
from fusionkit.run import Plans, compute_models, plan_models
from fusionkit.store import FORMAT, Artefact, Store, address_of, using
from fusionkit.task import Outcome
from fusionkit.training.device import choose_device, n_cores
from fusionkit.training.jobs import side_by_side, work_through
from fusionkit.training.stages import run_steps
from fusionkit.training.train import LOOP_VERSION

RESULT_VERSION = 1
"""Part of every result's address: raised when the same learned parts would predict otherwise."""
_N_HELD = 2
"""Experiments that are kept ready while another process is at what they need."""
NO_INFLUENCE = ("name", "description", "training")
"""Keys of a recipe on which no prediction depends; of `training`, the device's identity says what matters."""


@dataclass(frozen=True)
class Result:
    """What an experiment predicts.

    Args:
        predictions: Model -> its folds.
        outcomes: Subject -> class index, -1 where unknown; or numbers, None where unknown.
        classes: Names of the groups of outcomes: of the classes, the last one the positive class.
        is_simulated: Whether any of the data were simulated.
        warnings: What the audit says about the data.
    """

    predictions: Mapping[str, Sequence[FoldPredictions]]
    outcomes: Mapping[str, Outcome]
    classes: tuple[str, ...]
    is_simulated: bool
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Experiments:
    """What a sweep's experiments leave: results by label, and why others have none."""

    results: Mapping[str, Result]
    failures: Mapping[str, FusionkitError]
    computed: int


def run_experiments(
    recipes: Mapping[str, LoadedRecipe], registry: Registry, places: Places, tell: Tell, n_jobs: int = 1
) -> Experiments:
    """Computes the experiments that the store lacks, `n_jobs` at a time, and returns all of them.

    An experiment that fails leaves its reason, and the others go on.

    Args:
        recipes: Label -> recipe.
        registry: For the plugins' names.
        places: Folders of data and store.
        tell: Is told what happens; called from other threads where there are jobs.
        n_jobs: How many processes.

    Raises:
        ResourceError: The machine is out of disk, memory or rights.
    """
    with using(places.store):
        worker = Worker(recipes, places, tell, waits=n_jobs == 1)
        missing = worker.missing()
        others = min(n_jobs, len(missing)) - 1
        assignments = [
            _assignment(recipes, missing, registry, places, number, others + 1)
            for number in range(1, others + 1)
        ]
        with side_by_side(assignments, tell):
            worker.work(missing)
        results = {label: worker.result(label) for label in recipes if label not in worker.failures}
    n_computed = len([label for label in missing if label not in worker.failures])
    return Experiments(results, worker.failures, n_computed)


def pinned(loaded: LoadedSweep, n_jobs: int) -> LoadedSweep:
    """Returns a sweep whose recipes each have their share of the cores: its processes are all there are."""
    cores = n_cores()

    def pin(one: SweepExperiment) -> SweepExperiment:
        recipe = one.loaded.recipe
        changed = {"threads": recipe.training.threads or max(1, cores // n_jobs), "jobs": 1}
        training = recipe.training.model_copy(update=changed)
        resolved = {**one.loaded.resolved, "training": {**one.loaded.resolved["training"], **changed}}
        recipe = recipe.model_copy(update={"training": training})
        return replace(one, loaded=replace(one.loaded, recipe=recipe, resolved=resolved))

    return replace(loaded, experiments=tuple(map(pin, loaded.experiments)))


def _assignment(
    recipes: Mapping[str, LoadedRecipe],
    labels: Sequence[str],
    registry: Registry,
    places: Places,
    number: int,
    n_jobs: int,
) -> Mapping[str, Any]:
    """Returns what a further process is told: the experiments, from its own share on."""
    first = number * len(labels) // n_jobs
    ordered = [*labels[first:], *labels[:first]]
    folders = {name: str(path) for name, path in vars(places).items()}
    return {
        "recipes": {label: dump_yaml(recipes[label].resolved) for label in ordered},
        "plugins": registry.named,
        **folders,
    }


class Worker:
    """Computes experiments into the store, through its locks, so that several can work on one sweep.

    Args:
        recipes: Label -> recipe.
        places: Folders of data and store.
        tell: Is told what happens, with the experiment's label.
        waits: Whether to wait for what another process is at, rather than to go on with something else.

    Attributes:
        failures: Label -> why an experiment has no result.
    """

    def __init__(
        self, recipes: Mapping[str, LoadedRecipe], places: Places, tell: Tell, *, waits: bool = False
    ) -> None:
        self.recipes, self.places, self.tell = recipes, places, tell
        # alone, one says for whom one waits; beside others, there may be something else to do meanwhile
        self.store = Store(places.store, tell, waits=waits)
        self.waits = waits
        self.failures: dict[str, FusionkitError] = {}
        self._manifests: dict[str, Manifest] = {}
        self._held: dict[str, tuple[Prepared, Plans]] = {}
        self._addresses: dict[str, str] = {}
        self._rows: dict[tuple[str, ...], str] = {}

    def missing(self) -> list[str]:
        """Returns the experiments that the store has no result of."""
        found = []
        for label in self.recipes:
            try:
                if not self.store.has(self.address(label)):
                    found.append(label)
                    continue
            except ResourceError:
                raise
            except FusionkitError as error:  # data that cannot be read, for example
                self._fail(label, error)
                continue
            self.tell("experiment_finished", {"experiment": label, "is_stored": True})
        return found

    def work(self, labels: Sequence[str]) -> None:
        """Computes experiments until each has a result, here or from another process, or a reason why not."""
        work_through([label for label in labels if label not in self.failures], self._try)

    def _try(self, label: str) -> bool:
        """Computes an experiment; says whether it is done, or another process is at some of it."""
        try:
            if not self.store.has(self.address(label)):  # another variant may be the same experiment
                with self.store.lock(self.address(label), label):
                    if not self.store.has(self.address(label)):
                        self._compute(label)
        except Busy:
            return False
        except ResourceError:
            raise
        except FusionkitError as error:
            self._fail(label, error)
            return True
        self.tell("experiment_finished", {"experiment": label, "is_stored": False})
        return True

    def _fail(self, label: str, error: FusionkitError) -> None:
        self.failures[label] = error
        self.tell("experiment_failed", {"experiment": label, "problems": error.problems})

    def _compute(self, label: str) -> None:
        def tell(name: str, data: Mapping[str, Any]) -> None:
            self.tell(name, {"experiment": label, **data})

        tell("experiment_started", {})
        if label in self._held:
            prepared, plans = self._held.pop(label)
        else:
            prepared = self.prepare(label, tell)
            plans = plan_models(prepared)
        busy = False
        for (name, _, _), of_fold in plans.items():
            for plan in of_fold:
                try:
                    run_steps(prepared.variants[name], plan)
                except Busy:  # what comes after may be free
                    busy = True
        if busy:
            self._held = dict([*self._held.items(), (label, (prepared, plans))][-_N_HELD:])
            raise Busy
        predictions, _, _ = compute_models(prepared, plans, tell)
        self.store.save(self.address(label), _pack(predictions, prepared))

    def prepare(self, label: str, tell: Tell, *, fetches: bool = True) -> Prepared:
        """Brings an experiment together with its data, which are read once for all on the same."""
        loaded = self.recipes[label]
        manifest = self._manifest(loaded)
        return prepare(loaded, self.places, tell, waits=self.waits, fetches=fetches, manifest=manifest)

    def _manifest(self, loaded: LoadedRecipe) -> Manifest:
        """Reads a source once for all experiments that have the same."""
        key = _source_key(loaded)
        if key not in self._manifests:
            self._manifests.clear()  # one at a time: in the file's order, the next mostly has the same
            threads = choose_device(loaded.recipe.training).threads
            self._manifests[key] = read_manifest(loaded, self.places, threads, self.tell)
        return self._manifests[key]

    def address(self, label: str) -> str:
        """Returns the address of an experiment's result."""
        if label not in self._addresses:
            loaded = self.recipes[label]
            # every file is read for it: once for all experiments on the same columns of a source
            key = _source_key(loaded), *_columns(loaded)
            if key not in self._rows:
                self._rows[key] = digest_rows(loaded, self._manifest(loaded))
            self._addresses[label] = result_address(loaded, self._rows[key], self.places)
        return self._addresses[label]

    def result(self, label: str) -> Result:
        """Returns the result of an experiment that is done."""
        artefact = self.store.load(self.address(label))
        if artefact is None:
            raise DataError(
                f"{label}: its result has gone from the store meanwhile. Give the same command again."
            )
        return _unpack(artefact)


def _source_key(loaded: LoadedRecipe) -> str:
    """Returns what two experiments on the same data have in common."""
    plan = loaded.source_plan
    return address_of([plan.use, plan.plugin.version, plan.options])


def _columns(loaded: LoadedRecipe) -> list[str]:
    """Returns the columns whose cells may matter: read, or split by, or an outcome, also of a second task."""
    others = [loaded.recipe.split, *loaded.recipe.stages]
    named = [getattr(other, key, None) for other in others for key in ("column", "auxiliary")]
    named += outcome_columns(loaded.recipe.task).values()
    return list(dict.fromkeys([*loaded.used_columns, *(name for name in named if name is not None)]))


def result_address(loaded: LoadedRecipe, rows: str, places: Places) -> str:
    """Returns the address of an experiment's result: the hash of all that may determine its predictions.

    Wider than the addresses of stages, which it saves from being planned: a result that is computed once more
    finds its stages in the store.

    Args:
        loaded: The recipe.
        rows: What `digest_rows` gives.
        places: Where weights are.
    """
    parts = (loaded.source_plan, *loaded.parts.values())
    files = {
        f"{plan.path}.{name}": _content(path)
        for plan in parts
        for name, path in data_files(plan.config, places.data).items()
        if plan.path != "source"  # its rows say what it has read
    }
    return address_of(
        {
            "result": [FORMAT, LOOP_VERSION, SCALE_VERSION, RESULT_VERSION],
            "recipe": {key: node for key, node in loaded.resolved.items() if key not in NO_INFLUENCE},
            "order": list(loaded.recipe.modalities),
            "plugins": {plan.path: plan.plugin.version for plan in parts},
            "code": [code_version(), *_installed()],
            "rows": rows,
            "files": files,
            **choose_device(loaded.recipe.training).identity(),
        }
    )


@cache
def _installed() -> tuple[tuple[str, str], ...]:
    """Returns what is installed: another version of a library may read an image or fit a forest otherwise."""
    return tuple(sorted((found.name, found.version) for found in importlib.metadata.distributions()))


def digest_rows(loaded: LoadedRecipe, manifest: Manifest) -> str:
    """Returns the sha256 of schema and rows: ids, outcomes, cells in use, contents of their files."""
    names = [name for name in _columns(loaded) if name in manifest.cells.columns]
    given = manifest.subject_outcomes or [None] * len(manifest)
    known = [name for name in names if name in manifest.schema]
    schema = {name: manifest.schema[name].model_dump(mode="json") for name in known}
    digest = hashlib.sha256(json.dumps(schema, sort_keys=True).encode())
    for row in range(len(manifest)):
        cells = manifest.cells_of(row, names)
        texts = [_content(cell) if isinstance(cell, Path) else cell for cell in cells.values()]
        line = [manifest.samples[row], manifest.subjects[row], manifest.outcomes[row], given[row], *texts]
        digest.update(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def _content(path: Path) -> str | None:
    """Returns the digest of a file, or of all files in a folder: of a bag of tiles, of a language model."""
    try:
        return tree_digest(path).hex()
    except OSError:
        return None  # what is wrong with it is said where it is read


def _pack(predictions: Mapping[str, Sequence[FoldPredictions]], prepared: Prepared) -> Artefact:
    tensors: dict[str, torch.Tensor] = {}
    models: dict[str, list[dict[str, Any]]] = {}
    for model, folds in predictions.items():
        for number, fold in enumerate(folds):
            entry: dict[str, Any] = {"repeat": fold.repeat, "fold": fold.fold, "threshold": fold.threshold}
            for part in ("test", "validation"):
                rows = getattr(fold, part)
                if rows is not None:
                    entry[part] = {"samples": list(rows.samples), "subjects": list(rows.subjects)}
                    tensors[f"{model}/{number}/{part}/outcomes"] = torch.from_numpy(np.asarray(rows.outcomes))
                    # whatever the task predicts: stores have it under this name
                    tensors[f"{model}/{number}/{part}/probabilities"] = torch.from_numpy(rows.predictions)
            models.setdefault(model, []).append(entry)
    manifest = prepared.main.manifest
    return Artefact(
        tensors,
        {
            "verb": "predict",
            "stage": prepared.main.factory.loaded.recipe.name,
            "parts": list(models),
            "models": models,
            "outcomes": dict(prepared.outcomes),
            "classes": list(manifest.classes),
            "simulated": manifest.is_simulated,
            "warnings": [found.message for found in prepared.audit.warnings],
        },
    )


def _unpack(artefact: Artefact) -> Result:
    metadata = artefact.metadata

    def rows(model: str, number: int, part: str, entry: Mapping[str, Any]) -> SampleRows | None:
        if part not in entry:
            return None
        outcomes, predictions = (
            artefact.tensors[f"{model}/{number}/{part}/{name}"].numpy()
            for name in ("outcomes", "probabilities")
        )
        return SampleRows(entry[part]["samples"], entry[part]["subjects"], outcomes, predictions)

    predictions: dict[str, list[FoldPredictions]] = {}
    for model, entries in metadata["models"].items():
        for number, entry in enumerate(entries):
            test = rows(model, number, "test", entry)
            assert test is not None
            validation = rows(model, number, "validation", entry)
            predictions.setdefault(model, []).append(
                FoldPredictions(entry["repeat"], entry["fold"], test, validation, entry["threshold"])
            )
    return Result(
        predictions,
        metadata["outcomes"],
        tuple(metadata["classes"]),
        metadata["simulated"],
        tuple(metadata["warnings"]),
    )
