"""A learned run on other data that have outcomes: all that it learned stays as it is."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fusionkit import __version__
from fusionkit.data.audit import Audit, audit_data
from fusionkit.data.audit_files import Finding
from fusionkit.data.manifest import Manifest
from fusionkit.errors import DataError, RecipeError, ResourceError, counted
from fusionkit.evaluation.aggregate import FoldPredictions, SampleRows
from fusionkit.evaluation.measures import measures_of
from fusionkit.evaluation.metrics import FloatArray
from fusionkit.evaluation.report import build_report, write_predictions_csv
from fusionkit.interfaces import Tell
from fusionkit.learned import SEEN_BYTES, LearnedRun, file_modalities, json_bytes, subject_hash
from fusionkit.predict import NO_MODEL, answering_model, make_experiments, mean_predictions
from fusionkit.prepare import Places, outcomes_of, read_manifest, strata_of
from fusionkit.recipe.dialect import dump_yaml, parse
from fusionkit.recipe.schema import FUSED, PRETRAINED, PretrainStage
from fusionkit.recipe.task_nodes import WITH_CLASSES
from fusionkit.registry import Registry
from fusionkit.run import RunResult, last_pretraining, write_environment
from fusionkit.run_folder import hidden_until_whole, make_run_folder
from fusionkit.store import address_of, using, write_atomic
from fusionkit.task import Outcome, Task
from fusionkit.tasks import make_task
from fusionkit.training.device import choose_device
from fusionkit.training.experiment import Experiment
from fusionkit.training.pretrain import predict_pretrained
from fusionkit.training.supervised import mean_of_members

N_NAMED = 10
KEPT_WARNINGS = ("record", "subject")
"""What the audit may warn of that matters where nothing is learned; no advice on which columns to use."""


@dataclass(frozen=True)
class Seen:
    """What may be done with subjects whom the run learned from.

    Args:
        exclude: They are left out; else they are an error.
        new_subjects: The ids are those of other people; only the same files tell that somebody was seen.
    """

    exclude: bool = False
    new_subjects: bool = False


@dataclass(frozen=True)
class _Overlap:
    """Subjects of the other data whom the run learned from, and by what each was found."""

    by_id: Sequence[str]
    by_file: Sequence[str]

    @property
    def subjects(self) -> list[str]:
        return list(dict.fromkeys([*self.by_id, *self.by_file]))


def source_overrides(folder: Path, table: Path | None, images: Path | None) -> list[str]:
    """Returns the overrides that give a run's source another table, and another folder of its files."""
    overrides = []
    if table is not None:
        overrides.append(f"source.table={json.dumps(str(table.absolute()), ensure_ascii=False)}")
        if images is None and _has_option(folder, "images"):
            overrides.append("source.images=''")  # those of the run's own table are not meant
    if images is not None:
        overrides.append(f"source.images={json.dumps(str(images.absolute()), ensure_ascii=False)}")
    return overrides


def _has_option(folder: Path, option: str) -> bool:
    try:
        text = (folder / "resolved.yaml").read_text(encoding="utf-8")
        return option in parse(text, str)["source"]
    except (OSError, UnicodeDecodeError, LookupError, TypeError, RecipeError):
        return False  # opening the folder says what is wrong with it


def evaluate(
    learned: LearnedRun, registry: Registry, places: Places, tell: Tell, seen: Seen, parent: Path
) -> RunResult:
    """Evaluates a run on the data that its source now names; leaves a folder that explains itself.

    Args:
        learned: The run, opened with overrides of its source.
        registry: For the versions of the plugins.
        places: Folders of data and store.
        tell: Is told what happens.
        seen: What may be done with subjects whom the run learned from.
        parent: Where the folder of this evaluation goes.

    Raises:
        DataError: The data are not what the recipe says, have other classes or no outcome at all, or have
            subjects whom the run learned from.
        ResourceError: The folder cannot be written.
    """
    try:
        folder = make_run_folder(parent.parent, parent.name)
    except ResourceError:
        raise ResourceError(f"{parent}: cannot be written. Choose another folder with --output.") from None
    with hidden_until_whole(folder) as unfinished:
        with using(places.store):
            report = _evaluate(learned, places, tell, seen, unfinished)
        write_environment(unfinished, learned.loaded, registry)
        write_atomic(unfinished / "report.json", json_bytes(report))
    return RunResult(folder, report, 0)


def _evaluate(learned: LearnedRun, places: Places, tell: Tell, seen: Seen, folder: Path) -> dict[str, Any]:
    loaded = learned.loaded
    device = choose_device(loaded.recipe.training, n_jobs=loaded.recipe.n_jobs)
    tell("reading", {"source": loaded.source_plan.use})
    manifest = _read(learned, places, device.threads, tell)
    task = make_task(loaded.recipe.task, manifest.classes)
    first = next(iter(make_experiments(learned, manifest, places, tell).values()))
    audit = _audit(learned, first)
    overlap = _find_overlap(learned, first, seen)
    manifest = _without(manifest, overlap, seen)
    evaluation = loaded.recipe.evaluation
    outcomes = _outcomes(learned, manifest, task)
    experiments = make_experiments(learned, manifest, places, tell)
    predictions, answering = _predict(learned, experiments)
    report = build_report(
        predictions,
        outcomes,
        measures_of(task),
        evaluation,
        seed=loaded.recipe.seed,
        is_simulated=manifest.is_simulated,
    )
    report["warnings"] += [found.message for found in audit.warnings if found.check in KEPT_WARNINGS]
    report["warnings"] += _warnings(learned, first, overlap, seen, answering)
    run = {"folder": str(learned.folder.resolve()), "index": address_of(learned.index)}
    sums = {key: learned.index[key] for key in ("files", "sha256", "seen")}
    write_atomic(folder / "run.json", json_bytes({**run, **sums, "thresholds": dict(learned.thresholds)}))
    write_atomic(folder / "resolved.yaml", dump_yaml(loaded.resolved).encode())
    simulated = manifest.is_simulated
    write_predictions_csv(
        folder / "predictions.csv",
        predictions,
        outcomes,
        measures_of(task),
        evaluation,
        is_simulated=simulated,
    )
    return {
        "recipe": loaded.recipe.name,
        "fusionkit": __version__,
        "run": run,
        "split": None,
        "dropped": dict(manifest.dropped),
        "seen": {
            "subjects_by_id": len(overlap.by_id),
            "subjects_by_file": len(overlap.by_file),
            "excluded": seen.exclude,
        },
        "answered": dict(Counter(answering)),
        "device": vars(device),
        **report,
    }


def _outcomes(learned: LearnedRun, manifest: Manifest, task: Task) -> Mapping[str, Outcome]:
    outcomes = outcomes_of(learned.loaded.recipe.evaluation.subject_outcome, manifest, task)
    # cells that cannot be read are named by the audit, and are no lack of a column
    if not manifest.problems and all(task.stratum(outcome) < 0 for outcome in outcomes.values()):
        use = learned.loaded.source_plan.use
        raise DataError(f"{use}: no subject has an outcome. Name its column, or say predict.")
    return outcomes


def _read(learned: LearnedRun, places: Places, workers: int, tell: Tell) -> Manifest:
    """Reads the other data; raises DataError if their classes or columns are not those that were learned."""
    loaded, classes = learned.loaded, tuple(learned.index["classes"])
    if loaded.recipe.task.kind in WITH_CLASSES and tuple(loaded.source.classes) != classes:
        raise DataError(
            f"{loaded.source_plan.use}: the classes are not those of the run, in its order "
            f"({', '.join(loaded.source.classes)}). The run knows: {', '.join(classes)}."
        )
    manifest = read_manifest(loaded, places, workers, tell)
    manifest.require_columns(loaded.used_columns, "modalities")
    manifest = make_task(loaded.recipe.task, classes).with_strata(manifest)
    return replace(manifest, is_simulated=manifest.is_simulated or learned.index["simulated"])


def _audit(learned: LearnedRun, experiment: Experiment) -> Audit:
    """Looks at the other data as a run looks at its own; raises DataError with every problem."""
    problems: list[Finding] = []
    outcomes: Mapping[str, Outcome] = {}
    try:
        outcomes = _outcomes(learned, experiment.manifest, experiment.task)
    except DataError as error:
        problems = [Finding("outcome", sentence) for sentence in error.problems]
    audit = audit_data(
        learned.loaded,
        experiment.manifest,
        {name: experiment.reader(name) for name in experiment.modalities},
        strata_of(experiment.task, outcomes),
        (),
        experiment.store,
        task=experiment.task,
        threads=experiment.device.threads,
        progress=lambda done, total: experiment.tell("auditing", {"done": done, "total": total}),
    )
    audit = replace(audit, errors=[*audit.errors, *problems])
    if audit.errors:
        raise DataError([*audit.problems(), *_hints(learned, audit)])
    return audit


def _hints(learned: LearnedRun, audit: Audit) -> list[str]:
    """Returns what to do where cells of other data are outside the declarations of the run's own."""
    if not learned.loaded.source_plan.options.get("columns") or not audit.n_bad_cells:
        return []
    return [
        "evaluate: other data may declare what is missing, and a wider range: "
        "source.columns.NAME.missing=[TEXT], source.columns.NAME.range=[LEAST, GREATEST]."
    ]


def _find_overlap(learned: LearnedRun, experiment: Experiment, seen: Seen) -> _Overlap:
    manifest, known = experiment.manifest, learned.seen()
    subjects = list(dict.fromkeys(manifest.subjects))
    by_id = [subject for subject in subjects if subject_hash(subject) in known["subjects"]]
    by_file = {}
    for name in file_modalities(experiment):
        reader, files = experiment.reader(name), known[name]
        for row, subject in enumerate(manifest.subjects):
            if (reader.key(row) or b"")[:SEEN_BYTES] in files:
                by_file[subject] = name
    return _Overlap([] if seen.new_subjects else by_id, list(by_file))


def _without(manifest: Manifest, overlap: _Overlap, seen: Seen) -> Manifest:
    """Returns the rows of subjects whom the run did not learn from."""
    found = overlap.subjects
    if not found:
        return manifest
    if not seen.exclude:
        raise DataError(_overlap_problems(overlap))
    gone = set(found)
    rows = [row for row, subject in enumerate(manifest.subjects) if subject not in gone]
    if not rows:
        raise DataError("evaluate: no subject is left, the run learned from all of them. Give other data.")

    def kept(values: Sequence[Any]) -> list[Any]:
        return [values[row] for row in rows]

    own = manifest.subject_outcomes
    return replace(
        manifest,
        samples=kept(manifest.samples),
        subjects=kept(manifest.subjects),
        outcomes=kept(manifest.outcomes),
        cells=manifest.cells[rows],
        subject_outcomes=None if own is None else kept(own),
        checksums={name: kept(sums) for name, sums in manifest.checksums.items()},
    )


def _overlap_problems(overlap: _Overlap) -> list[str]:
    problems = []
    if overlap.by_id:
        none = "" if set(overlap.by_id) & set(overlap.by_file) else " None of their files was seen."
        problems.append(
            f"evaluate: the run learned from {_count(overlap.by_id)}.{none} Leave them out with "
            "--exclude-seen; if they are other people with the same ids, say --new-subjects."
        )
    if overlap.by_file:
        problems.append(
            f"evaluate: the run learned from files of {_count(overlap.by_file)}, under whatever name. "
            "Leave these subjects out with --exclude-seen."
        )
    return problems


def _count(subjects: Sequence[str]) -> str:
    more = f" and {len(subjects) - N_NAMED} more" if len(subjects) > N_NAMED else ""
    return f"{counted(len(subjects), 'subject')} of these data ({', '.join(subjects[:N_NAMED])}{more})"


def _predict(
    learned: LearnedRun, experiments: Mapping[str, Experiment]
) -> tuple[dict[str, list[FoldPredictions]], list[str]]:
    """Returns what every model says of its rows, and which model answers each row in the first one's place.

    The first model is what `predict` is: where it cannot answer a row, a modality's own model does.
    """
    first, main = next(iter(experiments.items()))
    every = np.arange(len(main.manifest))
    present = {name: main.reader(name).present(every) for name in main.modalities}
    answering = [answering_model(learned, {n: bool(p[row]) for n, p in present.items()}) for row in every]
    rows_of = {
        name: [row for row in every.tolist() if any(present[m][row] for m in experiment.modalities)]
        for name, experiment in experiments.items()
    }
    if first == FUSED:
        rows_of[FUSED] = [row for row in every.tolist() if answering[row] == FUSED]
    found = {
        name: dict(
            zip(rows_of[name], mean_predictions(learned, experiment, name, rows_of[name]), strict=True)
        )
        for name, experiment in experiments.items()
    }
    found[first] = {row: found[model][row] for row, model in enumerate(answering) if model != NO_MODEL}
    for modality, stage in last_pretraining(learned.loaded.recipe).items():
        if _has_classifier(learned, first, stage):
            rows = [row for row in every.tolist() if present[modality][row]]
            values = _pretrained_predictions(learned, main, first, stage, rows)
            found[modality + PRETRAINED] = dict(zip(rows, values, strict=True))
    return {name: [_as_fold(learned, main, name, rows)] for name, rows in found.items()}, answering


def _as_fold(
    learned: LearnedRun, experiment: Experiment, name: str, found: Mapping[int, FloatArray]
) -> FoldPredictions:
    manifest, task = experiment.manifest, experiment.task
    rows = SampleRows(
        [manifest.samples[row] for row in found],
        [manifest.subjects[row] for row in found],
        experiment.targets(list(found)),
        np.array(list(found.values())).reshape(len(found), len(task.predictions)),
    )
    return FoldPredictions(0, 0, rows, threshold=learned.thresholds[name])


def _has_classifier(learned: LearnedRun, model: str, stage: PretrainStage) -> bool:
    """Says whether the run kept the stage's classifier; not where a later stage taught the encoder on."""
    for origins in learned.members(model):
        artefact = learned.artefact(origins[stage.pretrain].address)
        if artefact is None or not any(
            name.startswith(f"{stage.pretrain}.classifier.") for name in artefact.tensors
        ):
            return False
    return True


def _pretrained_predictions(
    learned: LearnedRun, experiment: Experiment, model: str, stage: PretrainStage, rows: Sequence[int]
) -> FloatArray:
    views = learned.loaded.recipe.evaluation.views
    logits = (
        predict_pretrained(experiment, stage, origins[stage.pretrain], rows)
        for origins in learned.members(model)
    )
    return mean_of_members(experiment, logits, views)


def _warnings(
    learned: LearnedRun, experiment: Experiment, overlap: _Overlap, seen: Seen, answering: Sequence[str]
) -> list[str]:
    found = []
    if n_left := len(overlap.subjects):
        found.append(f"Left out, since the run learned from them: {counted(n_left, 'subject')}.")
    if seen.new_subjects:
        found.append("Subjects with an id of the run's were taken for other people, as --new-subjects says.")
    counts = Counter(answering)
    main = learned.models[0]
    alone = ", ".join(f"{counts[name]} by {name}" for name in learned.models[1:] if counts[name])
    if alone:
        found.append(f"Samples that {main} cannot answer were answered by a modality alone ({alone}).")
    if counts[NO_MODEL]:
        found.append(f"Samples without any modality, which no figure counts: {counts[NO_MODEL]}.")
    if learned.redeclared:
        found.append(
            f"Columns may hold other values than in the run ({', '.join(learned.redeclared)}): "
            "the model may be asked for what it never saw."
        )
    changes = learned.changes(experiment.device)
    if changes:
        found.append(f"Not as in the run, so figures may differ: {'; '.join(changes)}.")
    return found
