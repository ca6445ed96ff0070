"""One experiment from recipe to report: source, folds, stages, predictions, files."""

from __future__ import annotations

import json
import os
import secrets
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fusionkit import __version__
from fusionkit.data.manifest import Manifest
from fusionkit.data.splits import Fold, make_folds
from fusionkit.data.tables import check_table
from fusionkit.errors import DataError
from fusionkit.evaluation.aggregate import FoldPredictions, SampleRows, subject_outcomes
from fusionkit.evaluation.report import FUSED, build_report, write_predictions_csv
from fusionkit.interfaces import SourceContext
from fusionkit.learned import Member, json_bytes, patterns_of, write_model
from fusionkit.model import PartFactory, calling
from fusionkit.recipe.load import LoadedRecipe, dump_yaml
from fusionkit.recipe.schema import PRETRAINED, PretrainStage, Recipe
from fusionkit.registry import Registry
from fusionkit.store import Store, resource_error, write_atomic
from fusionkit.task import Classification
from fusionkit.training.checks import warn_of_one_class, warn_of_parts
from fusionkit.training.device import choose_device, describe_machine
from fusionkit.training.experiment import Experiment, Origin, Shared, Tell
from fusionkit.training.stages import Plan, plan_steps, run_steps
from fusionkit.training.supervised import link, predict_logits, predict_pretrained

SubjectRule = Literal["unanimous", "any_positive"]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Places:
    """The folders that a run works with.

    Args:
        data: Relative data and weight paths resolve under it.
        store: Artefacts and features.
        runs: Run folders.
    """

    data: Path
    store: Path
    runs: Path


@dataclass(frozen=True)
class Prepared:
    """A recipe brought together with its data.

    Args:
        variants: Model name -> its experiment: fused, and each modality alone; of a single one, its name.
        folds: The splits.
        outcomes: Subject -> class index, -1 where unknown.
    """

    variants: Mapping[str, Experiment]
    folds: Sequence[Fold]
    outcomes: Mapping[str, int]

    @property
    def main(self) -> Experiment:
        """The experiment of the recipe as written."""
        return next(iter(self.variants.values()))


@dataclass(frozen=True)
class RunResult:
    """What a run leaves."""

    folder: Path
    report: Mapping[str, Any]
    computed: int


def prepare(loaded: LoadedRecipe, places: Places, tell: Tell) -> Prepared:
    """Reads the data, checks them against the recipe and splits them; raises DataError with every problem."""
    recipe = loaded.recipe
    device = choose_device(recipe.training)
    tell("reading", {"source": loaded.source_plan.use})
    manifest = read_manifest(loaded, places, device.threads)
    check_manifest(loaded, manifest)
    task = Classification(manifest.classes)
    outcomes = _subject_outcomes(recipe.evaluation.subject_outcome, manifest, task)
    names = {subject: task.classes[code] for subject, code in outcomes.items() if code >= 0}
    folds = make_folds(recipe.split, manifest, names, recipe.seed)
    store, shared = Store(places.store), Shared()

    def experiment(name: str, variant: LoadedRecipe) -> Experiment:
        def tell_of(event: str, data: Mapping[str, Any]) -> None:
            tell(event, {"model": name, **data})

        factory = PartFactory(variant, task.output_dim, places.data)
        return Experiment(factory, manifest, task, store, device, tell_of, shared)

    modalities = list(recipe.modalities)
    main = FUSED if len(modalities) > 1 else modalities[0]
    variants = {main: experiment(main, loaded)}
    if len(modalities) > 1 and recipe.evaluation.modalities_alone:
        variants |= {name: experiment(name, loaded.alone(name)) for name in modalities}
    return Prepared(variants, folds, outcomes)


def read_manifest(loaded: LoadedRecipe, places: Places, workers: int) -> Manifest:
    """Reads the recipe's source."""
    context = SourceContext(places.data, places.store / "sources", workers)
    use = loaded.source_plan.use
    with calling("source", f"read of {use}", OSError):  # a disk that refuses is no plugin's mistake
        return loaded.source.read(context)


def check_manifest(loaded: LoadedRecipe, manifest: Manifest) -> None:
    """Raises DataError that names every column and file not there, and every cell outside its declaration."""
    used = [name for columns in loaded.columns.values() for name in columns]
    manifest.require_columns(dict.fromkeys(used), "modalities")
    schema = {name: manifest.schema[name] for name in dict.fromkeys(used)}
    files = [name for name, spec in schema.items() if spec.kind == "file"]
    problems = [*check_table(manifest, schema), *manifest.check_files(files)]
    if problems:
        raise DataError(problems)


def _subject_outcomes(rule: SubjectRule, manifest: Manifest, task: Classification) -> dict[str, int]:
    given = manifest.subject_outcomes
    return dict(
        subject_outcomes(
            manifest.subjects,
            task.encode(manifest.outcomes),
            task.classes,
            given=None if given is None else task.encode(given),
            rule=rule,
        )
    )


def plan_all(prepared: Prepared) -> Iterator[tuple[str, Fold, int, Plan]]:
    """Yields the plan of every model, fold and initialisation."""
    for fold in prepared.folds:
        for name, experiment in prepared.variants.items():
            for member in range(experiment.factory.loaded.recipe.seeds):
                yield name, fold, member, plan_steps(experiment, fold, member)


def run(loaded: LoadedRecipe, registry: Registry, places: Places, tell: Tell) -> RunResult:
    """Runs a recipe; what the store holds is not computed again."""
    folder = make_run_folder(places.runs, loaded.recipe.name)
    with open(folder / "log.jsonl", "a", encoding="utf-8") as log:
        started = time.monotonic()

        def note(name: str, data: Mapping[str, Any]) -> None:
            if name not in ("batch_finished", "features"):
                line = {"seconds": round(time.monotonic() - started, 3), "event": name, **data}
                log.write(json.dumps(line, default=str) + "\n")
                log.flush()
                registry.notify(name, data)
            tell(name, data)

        try:
            _write_start(folder, loaded, registry)
            prepared = prepare(loaded, places, note)
            write_split(folder / "split.csv", prepared)
            predictions, members, computed = _compute(prepared, note)
            report = _report(loaded, prepared, predictions, members)
            _write_end(folder, prepared, predictions, report, members)
        except Exception as error:
            # a message is one sentence; what a plugin's author needs stands here
            trace = traceback.format_exception(error)
            note("run_failed", {"error": str(error), "traceback": "".join(trace)})
            raise
        note("run_finished", {"folder": str(folder), "computed": computed})
    _point_latest(folder)
    return RunResult(folder, report, computed)


def _compute(prepared: Prepared, tell: Tell) -> tuple[dict[str, list[FoldPredictions]], list[Member], int]:
    """Runs every step and predicts every test row."""
    predictions: dict[str, list[FoldPredictions]] = {}
    members: list[Member] = []
    computed = 0
    for number, fold in enumerate(prepared.folds):
        tell("fold_started", {"fold": number + 1, "folds": len(prepared.folds)})
        for name, experiment in prepared.variants.items():
            seeds = experiment.factory.loaded.recipe.seeds
            plans = [plan_steps(experiment, fold, member) for member in range(seeds)]
            for member, plan in enumerate(plans):
                computed += run_steps(experiment, plan)
                patterns = patterns_of(experiment, plan)
                members.append(Member(name, fold.repeat, fold.fold, member, plan.origins, patterns))
            found = predict_fold(experiment, fold, [plan.origins for plan in plans])
            predictions.setdefault(name, []).append(found)
        for modality, stage in _last_pretraining(prepared.main.factory.loaded.recipe).items():
            found = _predict_pretrained(prepared.main, fold, stage)
            predictions.setdefault(modality + PRETRAINED, []).append(found)
    return predictions, members, computed


def _last_pretraining(recipe: Recipe) -> dict[str, PretrainStage]:
    """Returns the stage that leaves each pretrained encoder, by modality."""
    stages = [stage for stage in recipe.stages if isinstance(stage, PretrainStage)]
    return {stage.pretrain.split(".")[0]: stage for stage in stages}


def predict_fold(
    experiment: Experiment, fold: Fold, members: Sequence[Mapping[str, Origin]]
) -> FoldPredictions:
    """Predicts a fold's test rows, and its validation rows where the threshold is chosen there."""
    evaluation = experiment.factory.loaded.recipe.evaluation

    def probabilities(rows: Sequence[int]) -> FloatArray:
        logits = [predict_logits(experiment, origins, rows) for origins in members]
        mean: FloatArray = np.mean([link(experiment, each, evaluation.views) for each in logits], axis=0)
        return mean

    return _fold_predictions(experiment, fold, probabilities)


def _predict_pretrained(experiment: Experiment, fold: Fold, stage: PretrainStage) -> FoldPredictions:
    recipe = experiment.factory.loaded.recipe
    plans = [plan_steps(experiment, fold, member) for member in range(recipe.seeds)]
    steps = [next(step for step in plan.steps if step.stage.name == stage.name) for plan in plans]

    def probabilities(rows: Sequence[int]) -> FloatArray:
        origins = [Origin(step.address, step.used[stage.pretrain].seed, is_learned=True) for step in steps]
        logits = [predict_pretrained(experiment, stage, origin, rows) for origin in origins]
        views = recipe.evaluation.views
        mean: FloatArray = np.mean([link(experiment, each, views) for each in logits], axis=0)
        return mean

    return _fold_predictions(experiment, fold, probabilities, [stage.pretrain.split(".")[0]])


def _fold_predictions(
    experiment: Experiment,
    fold: Fold,
    probabilities: Callable[[Sequence[int]], FloatArray],
    modalities: Sequence[str] | None = None,
) -> FoldPredictions:
    manifest, task = experiment.manifest, experiment.task

    def predict(rows: Sequence[int]) -> SampleRows:
        readers = [experiment.reader(name) for name in modalities or experiment.modalities]
        rows = [row for row in rows if any(reader.key(row) is not None for reader in readers)]
        return SampleRows(
            [manifest.samples[row] for row in rows],
            [manifest.subjects[row] for row in rows],
            task.encode([manifest.outcomes[row] for row in rows]),
            probabilities(rows),
        )

    needs_validation = experiment.factory.loaded.recipe.evaluation.threshold == "validation"
    validation = predict(fold.validation) if needs_validation else None
    return FoldPredictions(fold.repeat, fold.fold, predict(fold.test), validation)


def _report(
    loaded: LoadedRecipe,
    prepared: Prepared,
    predictions: Mapping[str, Sequence[FoldPredictions]],
    members: Sequence[Member],
) -> dict[str, Any]:
    recipe, manifest = loaded.recipe, prepared.main.manifest
    report = build_report(
        predictions,
        prepared.outcomes,
        manifest.classes,
        recipe.evaluation,
        seed=recipe.seed,
        is_simulated=manifest.is_simulated,
        unit=getattr(recipe.split, "unit", "subject"),
    )
    learned = {origin.address for m in members for origin in m.origins.values() if origin.is_learned}
    report["warnings"] += warn_of_one_class(prepared.main, prepared.folds)
    report["warnings"] += warn_of_parts(prepared.main.store, learned)
    blank = _n_blank(prepared)
    if blank:
        report["warnings"].append(f"{blank} tested samples have no modality at all; no figure counts them.")
    return {
        "recipe": recipe.name,
        "fusionkit": __version__,
        "split": recipe.split.model_dump(mode="json"),
        "dropped": dict(manifest.dropped),
        "device": vars(prepared.main.device),
        **report,
    }


def _n_blank(prepared: Prepared) -> int:
    """Returns how many tested samples have no modality at all."""
    readers = [prepared.main.reader(name) for name in prepared.main.modalities]
    rows = {row for fold in prepared.folds for row in fold.test}
    return sum(all(reader.key(row) is None for reader in readers) for row in rows)


def make_run_folder(runs: Path, name: str) -> Path:
    """Makes `runs/<recipe>/<utc>-<6 hex>/`; raises ResourceError at once where that cannot be written."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    folder = runs / name / f"{stamp}-{secrets.token_hex(3)}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise resource_error(folder, error) from error
    return folder


def _write_start(folder: Path, loaded: LoadedRecipe, registry: Registry) -> None:
    write_atomic(folder / "recipe.yaml", loaded.text.encode())
    write_atomic(folder / "resolved.yaml", dump_yaml(loaded.resolved).encode())
    versions = {plugin.name: plugin.version for plugin in registry.plugins.values()}
    environment = {"fusionkit": __version__, "plugins": versions, **describe_machine()}
    write_atomic(folder / "environment.json", json_bytes(environment))


def _write_end(
    folder: Path,
    prepared: Prepared,
    predictions: Mapping[str, Sequence[FoldPredictions]],
    report: Mapping[str, Any],
    members: Sequence[Member],
) -> None:
    main = prepared.main
    write_predictions_csv(
        folder / "predictions.csv",
        predictions,
        prepared.outcomes,
        main.manifest.classes,
        main.factory.loaded.recipe.evaluation,
        is_simulated=main.manifest.is_simulated,
    )
    write_atomic(folder / "report.json", json_bytes(report))
    write_model(folder / "model", prepared.main, members)  # last: its index holds the sum of the report


def write_split(path: Path, prepared: Prepared) -> None:
    """Writes which sample is in which set of which fold."""
    manifest = prepared.main.manifest
    lines = ["repeat,fold,set,sample,subject"]
    for fold in prepared.folds:
        for name in ("train", "validation", "test"):
            for row in getattr(fold, name):
                ids = [_csv_cell(text) for text in (manifest.samples[row], manifest.subjects[row])]
                lines.append(",".join((str(fold.repeat), str(fold.fold), name, *ids)))
    write_atomic(path, ("\n".join(lines) + "\n").encode())


def _csv_cell(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\r\n') else text


def _point_latest(folder: Path) -> None:
    """Points `latest` to the newest run, atomically."""
    link_path = folder.parent / f".latest.{secrets.token_hex(3)}"
    try:
        link_path.symlink_to(folder.name)
        os.replace(link_path, folder.parent / "latest")
    except OSError as error:
        raise resource_error(folder.parent / "latest", error) from error
