"""One experiment from recipe to report: source, folds, stages, predictions, files."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionkit import __version__
from fusionkit.data.manifest import Manifest
from fusionkit.data.splits import Fold
from fusionkit.errors import counted
from fusionkit.evaluation.aggregate import FoldPredictions, SampleRows
from fusionkit.evaluation.measures import measures_of
from fusionkit.evaluation.missing import Blanked, Blanks, blanked_models
from fusionkit.evaluation.report import build_report, write_predictions_csv
from fusionkit.interfaces import Tell
from fusionkit.learned import Member, json_bytes, patterns_of, write_model
from fusionkit.prepare import Places, Prepared, plan_all, prepare
from fusionkit.recipe.load import LoadedRecipe, dump_yaml
from fusionkit.recipe.schema import PRETRAINED, PretrainStage, Recipe
from fusionkit.registry import Registry
from fusionkit.run_folder import make_run_folder, marked_unfinished, point_latest
from fusionkit.specs import TABULAR_KINDS
from fusionkit.store import resource_error, using, write_atomic
from fusionkit.training.checks import warn_of_parts
from fusionkit.training.device import choose_device, describe_environment
from fusionkit.training.experiment import Experiment, Origin
from fusionkit.training.jobs import side_by_side
from fusionkit.training.pretrain import predict_pretrained
from fusionkit.training.stages import Plan, run_steps
from fusionkit.training.supervised import mean_of_members, predict_logits

FloatArray = NDArray[np.float64]
MOST_COLUMNS = 5
"""How many columns with missing cells are named."""
Plans = dict[tuple[str, int, int], list[Plan]]
"""Of each model, repeat and fold: one for each initialisation."""


@dataclass(frozen=True)
class RunResult:
    """What a run leaves."""

    folder: Path
    report: Mapping[str, Any]
    computed: int


def run(loaded: LoadedRecipe, registry: Registry, places: Places, tell: Tell) -> RunResult:
    """Runs a recipe; what the store holds is not computed again."""
    folder = make_run_folder(places.runs, loaded.recipe.name)
    named = [str(Path(name).absolute()) if Path(name).exists() else name for name in registry.named]
    folders = {"data_root": str(places.data.absolute()), "store": str(places.store.absolute())}
    given = {**folders, "plugins": named}
    log = folder / "log.jsonl"
    with marked_unfinished(folder, given), using(places.store), _open_log(log) as write:
        started = time.monotonic()
        turn = threading.Lock()  # jobs are listened to in threads

        def note(name: str, data: Mapping[str, Any]) -> None:
            with turn:
                if name not in ("batch_finished", "features", "auditing", "making_files"):
                    line = {"seconds": round(time.monotonic() - started, 3), "event": name, **data}
                    write(json.dumps(line, default=str) + "\n")
                    registry.notify(name, data)
                tell(name, data)

        _write_start(folder, loaded, registry)
        prepared = prepare(loaded, places, note)
        write_split(folder / "split.csv", prepared)
        plans = plan_models(prepared)
        with side_by_side(_other_jobs(prepared, registry, places), note) as jobs:
            predictions, members, computed = compute_models(prepared, plans, note)
        computed += jobs.computed
        report = _report(loaded, prepared, predictions, members)
        _write_end(folder, prepared, predictions, report, members)
        note("run_finished", {"folder": str(folder), "computed": computed})
    point_latest(folder)
    return RunResult(folder, report, computed)


def _other_jobs(prepared: Prepared, registry: Registry, places: Places) -> list[Mapping[str, Any]]:
    """Returns what each job beside this process is told; none where there is nothing to share."""
    loaded = prepared.main.factory.loaded
    n_jobs = loaded.recipe.n_jobs
    assignment = {"recipe": dump_yaml(loaded.resolved), "plugins": registry.named, "jobs": n_jobs}
    folders = {name: str(path) for name, path in vars(places).items()}
    return [{**assignment, **folders, "number": number} for number in range(1, n_jobs)]


def plan_models(prepared: Prepared) -> Plans:
    """Plans every model of every fold, so that what cannot be is said before anything is trained."""
    plans: Plans = {}
    for name, fold, _, plan in plan_all(prepared):
        plans.setdefault((name, fold.repeat, fold.fold), []).append(plan)
    return plans


def compute_models(
    prepared: Prepared, plans: Plans, tell: Tell
) -> tuple[dict[str, list[FoldPredictions]], list[Member], int]:
    """Runs every step and predicts every test row."""
    predictions: dict[str, list[FoldPredictions]] = {}
    members: list[Member] = []
    computed = 0
    n_folds, n_jobs = len(prepared.folds), prepared.main.factory.loaded.recipe.n_jobs
    main = next(iter(prepared.variants))
    for number, fold in enumerate(prepared.folds):
        tell("fold_started", {"fold": number + 1, "folds": n_folds, "jobs": n_jobs})
        for name, experiment in prepared.variants.items():
            of_fold = plans[name, fold.repeat, fold.fold]
            for member, plan in enumerate(of_fold):
                computed += run_steps(experiment, plan, fold=number + 1, member=member + 1)
                patterns = patterns_of(experiment, plan)
                members.append(Member(name, fold.repeat, fold.fold, member, plan.origins, patterns))
            found = predict_fold(experiment, fold, [plan.origins for plan in of_fold])
            predictions.setdefault(name, []).append(found)
        for modality, stage in last_pretraining(prepared.main.factory.loaded.recipe).items():
            of_fold = plans[main, fold.repeat, fold.fold]
            found = _predict_pretrained(prepared.main, fold, stage, of_fold)
            predictions.setdefault(modality + PRETRAINED, []).append(found)
        for model, found in _predict_blanked(prepared, fold, plans):
            predictions.setdefault(model.name, []).append(found)
    return predictions, members, computed


def last_pretraining(recipe: Recipe) -> dict[str, PretrainStage]:
    """Returns the stage that leaves each pretrained encoder, by modality."""
    stages = [stage for stage in recipe.stages if isinstance(stage, PretrainStage)]
    return {stage.pretrain.split(".")[0]: stage for stage in stages}


def predict_fold(
    experiment: Experiment, fold: Fold, members: Sequence[Mapping[str, Origin]]
) -> FoldPredictions:
    """Predicts a fold's test rows, and its validation rows where the threshold is chosen there."""
    evaluation = experiment.factory.loaded.recipe.evaluation

    def predictions(rows: Sequence[int]) -> FloatArray:
        logits = (predict_logits(experiment, origins, rows) for origins in members)
        return mean_of_members(experiment, logits, evaluation.views)

    return _fold_predictions(experiment, fold, predictions)


def blanked_of(prepared: Prepared) -> list[Blanked]:
    """Returns the models that the recipe asks to test with cells blanked."""
    loaded = prepared.main.factory.loaded
    readers = {
        modality: [
            name
            for name, experiment in prepared.variants.items()
            if set(columns) & set(experiment.factory.loaded.used_columns)
        ]
        for modality, columns in loaded.columns.items()
    }
    return blanked_models(loaded.recipe.evaluation, readers)


def _predict_blanked(
    prepared: Prepared, fold: Fold, plans: Plans
) -> Iterator[tuple[Blanked, FoldPredictions]]:
    """Predicts a fold's test rows with cells blanked; no other row is touched, and nothing learns."""
    by_place: dict[tuple[str, float], list[Blanked]] = {}
    for model in blanked_of(prepared):
        by_place.setdefault((model.modality, model.rate), []).append(model)
    evaluation = prepared.main.factory.loaded.recipe.evaluation
    for draw in range(evaluation.missing_draws):
        blanks = {name: _blanks(prepared.main, fold, name, draw) for name in evaluation.missing}
        for (modality, rate), models in by_place.items():
            changed = _with_cells(prepared.main, blanks[modality].at(rate), blanks[modality].columns)
            for model in models:
                plain = prepared.variants[model.plain]
                same = replace(plain, manifest=changed.manifest, shared=changed.shared)
                found = predict_fold(
                    same, fold, [p.origins for p in plans[model.plain, fold.repeat, fold.fold]]
                )
                yield model, replace(found, repeat=model.repeat(fold.repeat, draw))


def _blanks(experiment: Experiment, fold: Fold, modality: str, draw: int) -> Blanks:
    reader = experiment.reader(modality)
    seed = experiment.factory.loaded.recipe.seed
    columns = experiment.factory.loaded.columns[modality]
    return Blanks(experiment.manifest, fold.test, columns, reader.key, seed=seed, draw=draw)


def _with_cells(experiment: Experiment, manifest: Manifest, columns: Sequence[str]) -> Experiment:
    """Returns the experiment on data that differ in some columns: whoever reads those reads them anew."""
    shared, changed = experiment.shared, set(columns)
    readers = {n: reader for n, reader in shared.readers.items() if not changed & set(reader.spec.columns)}
    return replace(experiment, manifest=manifest, shared=replace(shared, readers=readers))


def _predict_pretrained(
    experiment: Experiment, fold: Fold, stage: PretrainStage, plans: Sequence[Plan]
) -> FoldPredictions:
    recipe = experiment.factory.loaded.recipe
    steps = [next(step for step in plan.steps if step.stage.name == stage.name) for plan in plans]

    def predictions(rows: Sequence[int]) -> FloatArray:
        origins = [Origin(step.address, step.used[stage.pretrain].seed, is_learned=True) for step in steps]
        logits = (predict_pretrained(experiment, stage, origin, rows) for origin in origins)
        return mean_of_members(experiment, logits, recipe.evaluation.views)

    return _fold_predictions(experiment, fold, predictions, [stage.pretrain.split(".")[0]])


def _fold_predictions(
    experiment: Experiment,
    fold: Fold,
    predictions: Callable[[Sequence[int]], FloatArray],
    modalities: Sequence[str] | None = None,
) -> FoldPredictions:
    manifest = experiment.manifest

    def predict(rows: Sequence[int]) -> SampleRows:
        readers = [experiment.reader(name) for name in modalities or experiment.modalities]
        rows = [row for row in rows if any(reader.key(row) is not None for reader in readers)]
        return SampleRows(
            [manifest.samples[row] for row in rows],
            [manifest.subjects[row] for row in rows],
            experiment.targets(rows),
            predictions(rows),
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
        measures_of(prepared.main.task),
        recipe.evaluation,
        seed=recipe.seed,
        is_simulated=manifest.is_simulated,
        unit=getattr(recipe.split, "unit", "subject"),
        blanked=blanked_of(prepared),
    )
    report["warnings"] += [found.message for found in prepared.audit.warnings]
    report["warnings"] += _missing_cells(prepared)
    learned = {origin.address for m in members for origin in m.origins.values() if origin.is_learned}
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


def _missing_cells(prepared: Prepared) -> list[str]:
    """Says of each record which of its columns have missing cells, and who decides what stands there."""
    audit, said = prepared.audit, []
    parts = prepared.main.factory.loaded.parts
    for modality, n_rows in audit.modalities.items():
        n_absent = audit.samples - n_rows
        counts = {
            column.name: column.missing - n_absent
            for column in audit.columns
            if modality in column.modalities and column.kind in TABULAR_KINDS and column.missing > n_absent
        }
        if counts:
            use = parts[f"{modality}.encoder"].use
            most = sorted(counts, key=lambda name: -counts[name])[:MOST_COLUMNS]
            more = (
                f" and {counted(len(counts) - len(most), 'column')} more" if len(counts) > len(most) else ""
            )
            named = ", ".join(f"{name} {counts[name]}" for name in most)
            said.append(
                f"{modality}: cells are missing in its {n_rows} rows ({named}{more}). What stands for them "
                f"is an option of {use}."
            )
    return said


def _n_blank(prepared: Prepared) -> int:
    """Returns how many tested samples have no modality at all."""
    readers = [prepared.main.reader(name) for name in prepared.main.modalities]
    rows = {row for fold in prepared.folds for row in fold.test}
    return sum(all(reader.key(row) is None for reader in readers) for row in rows)


@contextmanager
def _open_log(path: Path) -> Iterator[Callable[[str], None]]:
    """Yields what appends a line to the log; raises ResourceError where that is refused."""
    # unbuffered: what a full disk refuses must not be tried once more on closing
    with open(path, "ab", buffering=0) as log:

        def write(line: str) -> None:
            try:
                log.write(line.encode())
            except OSError as error:
                raise resource_error(path, error) from error

        yield write


def _write_start(folder: Path, loaded: LoadedRecipe, registry: Registry) -> None:
    write_atomic(folder / "recipe.yaml", loaded.text.encode())
    write_atomic(folder / "resolved.yaml", dump_yaml(loaded.resolved).encode())
    write_environment(folder, loaded, registry)


def write_environment(folder: Path, loaded: LoadedRecipe, registry: Registry) -> None:
    """Writes what else could matter to a number."""
    versions = {plugin.name: plugin.version for plugin in registry.plugins.values()}
    device = choose_device(loaded.recipe.training, n_jobs=loaded.recipe.n_jobs)
    environment = {"fusionkit": __version__, "plugins": versions, **describe_environment(device)}
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
        measures_of(main.task),
        main.factory.loaded.recipe.evaluation,
        is_simulated=main.manifest.is_simulated,
    )
    write_atomic(folder / "report.json", json_bytes(report))
    # last: its index holds the sum of the report
    write_model(folder / "model", prepared.main, members, prepared.folds)


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
