"""A recipe brought together with its data: read, audited, split; nothing has been trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fusionkit.data.audit import Audit, audit_data, check_rows
from fusionkit.data.audit_files import Finding
from fusionkit.data.audit_outcomes import same_outcomes
from fusionkit.data.batches import ModalityReader
from fusionkit.data.manifest import Manifest
from fusionkit.data.splits import Fold, make_folds
from fusionkit.errors import DataError, counted
from fusionkit.evaluation.aggregate import check_sample_rule, subject_numbers, subject_outcomes
from fusionkit.interfaces import SourceContext, Tell
from fusionkit.model import calling
from fusionkit.part_factory import NotHereError, PartFactory
from fusionkit.recipe.load import LoadedRecipe
from fusionkit.recipe.schema import FUSED, ColumnSplit, Recipe
from fusionkit.store import Store
from fusionkit.task import Outcome, Task, WithClasses
from fusionkit.tasks import make_task
from fusionkit.training.device import choose_device
from fusionkit.training.experiment import Experiment, Shared
from fusionkit.training.stages import Plan, plan_steps

SubjectRule = Literal["unanimous", "any_positive"]

FETCH = "fetch"
"""The check that finds weights which only a run fetches."""


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
        outcomes: Subject -> class index, -1 where unknown; or numbers, None where unknown.
        audit: What was found in the data.
    """

    variants: Mapping[str, Experiment]
    folds: Sequence[Fold]
    outcomes: Mapping[str, Outcome]
    audit: Audit

    @property
    def main(self) -> Experiment:
        """The experiment of the recipe as written."""
        return next(iter(self.variants.values()))


def prepare(
    loaded: LoadedRecipe,
    places: Places,
    tell: Tell,
    *,
    waits: bool = True,
    fetches: bool = True,
    manifest: Manifest | None = None,
) -> Prepared:
    """Reads the data unless they are given, audits them and splits them; raises DataError with every problem.

    Args:
        loaded: The recipe.
        places: Folders of data and store.
        tell: Is told what happens.
        waits: Whether to wait for what another process is computing.
        fetches: Whether an encoder may fetch its weights from the network.
        manifest: The data, where they have been read.
    """
    manifest = manifest or _read(loaded, places, tell)
    # what the audit knows without weights is said before any are fetched
    prepared = examine(loaded, places, tell, waits=waits, fetches=False, manifest=manifest)
    audit = prepared.audit
    unseen = [found for found in audit.warnings if found.check == FETCH]
    known = [found.message for found in audit.warnings if found.check != FETCH]
    if not fetches:  # only `--dry-run` asks for a plan that fetches none
        cure = "Without them nothing can be planned: leave --dry-run out."
        more = [replace(found, message=f"{found.message} {cure}") for found in unseen]
        audit = replace(audit, errors=[*audit.errors, *more])
    tell("audited", {"errors": audit.problems(), "warnings": known})
    audit.raise_errors()
    if unseen:
        prepared = examine(loaded, places, tell, waits=waits, fetches=True, manifest=manifest)
        prepared.audit.raise_errors()
    for experiment in prepared.variants.values():
        experiment.factory.fetches = fetches
    return prepared


def examine(
    loaded: LoadedRecipe,
    places: Places,
    tell: Tell,
    *,
    waits: bool = True,
    fetches: bool = True,
    manifest: Manifest | None = None,
) -> Prepared:
    """Does what `prepare` does, but leaves the problems in the audit; without outcomes there are no folds."""
    recipe = loaded.recipe
    device = choose_device(recipe.training, n_jobs=recipe.n_jobs)
    manifest = manifest or _read(loaded, places, tell)
    manifest.require_columns(loaded.used_columns, "modalities")
    task = make_task(recipe.task, manifest.classes)
    manifest = task.with_strata(manifest)
    check_sample_rule(recipe.evaluation.samples, len(task.classes) or 2)
    problems, outcomes, folds = list[Finding](), dict[str, Outcome](), list[Fold]()
    try:
        outcomes = outcomes_of(recipe.evaluation.subject_outcome, manifest, task)
        problems = same_outcomes(task, manifest)
        if not (manifest.problems or problems):  # else what a split lacks may be what a row lacks
            folds = _split(recipe, manifest, task, outcomes)
    except DataError as error:
        check = "split" if outcomes else "outcome"
        problems += [Finding(check, sentence) for sentence in error.problems]
    store, shared = Store(places.store, tell, waits=waits), Shared()

    def experiment(name: str, variant: LoadedRecipe) -> Experiment:
        def tell_of(event: str, data: Mapping[str, Any]) -> None:
            tell(event, {"model": name, **data})

        factory = PartFactory(variant, task.output_dim, places.data, fetches=fetches)
        return Experiment(factory, manifest, task, store, device, tell_of, shared)

    modalities = list(recipe.modalities)
    main = FUSED if len(modalities) > 1 else modalities[0]
    variants = {main: experiment(main, loaded)}
    if len(modalities) > 1 and recipe.evaluation.modalities_alone:
        variants |= {name: experiment(name, loaded.alone(name)) for name in modalities}
    readers, absent, unseen = _readers(variants[main], modalities)
    audit = audit_data(
        loaded,
        manifest,
        readers,
        strata_of(task, outcomes),
        folds,
        store,
        task=task,
        threads=device.threads,
        progress=lambda done, total: tell("auditing", {"done": done, "total": total}),
    )
    errors, warnings = [*audit.errors, *problems, *absent], [*audit.warnings, *unseen]
    if not errors:
        errors = [Finding("task", sentence) for sentence in _refused(task, variants, readers, folds)]
    if not errors:
        warnings += [*_idle(recipe, readers, folds), *_in_no_set(recipe, manifest, outcomes, folds)]
    audit = replace(audit, errors=errors, warnings=warnings)
    return Prepared(variants, folds, outcomes, audit)


def _split(recipe: Recipe, manifest: Manifest, task: Task, outcomes: Mapping[str, Outcome]) -> list[Fold]:
    names = {s: task.strata[code] for s, code in strata_of(task, outcomes).items() if code >= 0}
    spread = {s: value for s in names if (value := task.spread(outcomes[s])) is not None}
    return make_folds(recipe.split, manifest, names, recipe.seed, task.needed, spread)


def _readers(
    experiment: Experiment, modalities: Sequence[str]
) -> tuple[dict[str, ModalityReader], list[Finding], list[Finding]]:
    """Returns who reads each modality, what is wrong with encoders, and what has yet to be fetched."""
    readers, absent, unseen = dict[str, ModalityReader](), list[Finding](), list[Finding]()
    for name in modalities:
        try:
            readers[name] = experiment.reader(name)
        except NotHereError as error:  # nothing is wrong with the data
            said = f"Files of {name} were not decoded."
            unseen += [Finding(FETCH, f"{sentence} {said}") for sentence in error.problems]
        except DataError as error:  # its weights are not there
            absent += [Finding("encoder", sentence) for sentence in error.problems]
    return readers, absent, unseen


def _refused(
    task: Task,
    variants: Mapping[str, Experiment],
    readers: Mapping[str, ModalityReader],
    folds: Sequence[Fold],
) -> list[str]:
    """Returns what the task refuses of the rows that a model of a fold would learn from."""
    found: dict[str, None] = {}
    for fold in folds:
        where = f"repeat {fold.repeat}, fold {fold.fold}: " if len(folds) > 1 else ""
        rows = np.array(fold.train, dtype=np.int64)
        for experiment in variants.values():
            if not all(name in readers for name in experiment.modalities):
                continue  # its weights have yet to be fetched: a run asks again then
            here = np.any([readers[name].present(rows) for name in experiment.modalities], axis=0)
            try:
                if here.any():
                    task.fitted(task.targets(experiment.manifest, rows[here]))
            except DataError as error:
                found |= dict.fromkeys(where + sentence for sentence in error.problems)
    return list(found)


def _in_no_set(
    recipe: Recipe, manifest: Manifest, outcomes: Mapping[str, Outcome], folds: Sequence[Fold]
) -> list[Finding]:
    """Warns of rows with an outcome that a split by a column names no set for."""
    if not isinstance(recipe.split, ColumnSplit):
        return []
    texts = manifest.cells[recipe.split.column].to_list()
    rows = [row for row in folds[0].left_out if manifest.outcomes[row] and manifest.subjects[row] in outcomes]
    if not rows:
        return []
    n_subjects = len({manifest.subjects[row] for row in rows})
    values = ", ".join(sorted({repr(texts[row] or "") for row in rows})[:5])
    return [
        Finding(
            "split",
            f"split: {counted(len(rows), 'row')} of {counted(n_subjects, 'subject')} "
            f"in no set (column '{recipe.split.column}': {values}). Name the value, if that is not meant.",
        )
    ]


def _idle(recipe: Recipe, readers: Mapping[str, ModalityReader], folds: Sequence[Fold]) -> list[Finding]:
    """Warns of what is asked for absent modalities, and will do nothing with these data."""
    found = []
    if len(recipe.modalities) == 1:
        [(name, node)] = recipe.modalities.items()
        keys = [key for key in ("dropout", "absent") if getattr(node, key) not in (0, "zero")]
        found += [f"modalities.{name}.{key}: does nothing, a sample keeps its only modality." for key in keys]
    rows = sorted({row for fold in folds for row in fold.train})
    for name in recipe.stood_in if rows else ():
        if name in recipe.dropouts or name not in readers or not readers[name].present(rows).all():
            continue
        found.append(
            f"modalities.{name}.absent: the vector stays zero, since no training sample lacks {name} "
            f"({len(rows)} samples). Set modalities.{name}.dropout."
        )
    return [Finding("absence", sentence) for sentence in found]


def _read(loaded: LoadedRecipe, places: Places, tell: Tell) -> Manifest:
    tell("reading", {"source": loaded.source_plan.use})
    threads = choose_device(loaded.recipe.training, n_jobs=loaded.recipe.n_jobs).threads
    return read_manifest(loaded, places, threads, tell)


def read_manifest(
    loaded: LoadedRecipe, places: Places, workers: int, tell: Tell = lambda name, data: None
) -> Manifest:
    """Reads the recipe's source, which may make its files first."""
    source = loaded.source_plan.use

    def tell_files(done: int, total: int) -> None:
        tell("making_files", {"source": source, "done": done, "total": total})

    context = SourceContext(places.data, places.store / "sources", workers, tell_files)
    with calling("source", f"read of {source}", OSError):  # a disk that refuses is no mistake
        return loaded.source.read(context)


def check_manifest(loaded: LoadedRecipe, manifest: Manifest) -> None:
    """Raises DataError that names every column and file not there, and every cell outside its declaration."""
    used = loaded.used_columns
    manifest.require_columns(used, "modalities")
    check_rows(manifest, used).raise_errors()


def strata_of(task: Task, outcomes: Mapping[str, Outcome]) -> dict[str, int]:
    """Returns the index of each subject's stratum, -1 where its outcome is not known."""
    return {subject: task.stratum(outcome) for subject, outcome in outcomes.items()}


def outcomes_of(rule: SubjectRule, manifest: Manifest, task: Task) -> dict[str, Outcome]:
    """Returns each subject's outcome, such as its class index; raises DataError where the data disagree."""
    targets = task.targets(manifest, range(len(manifest)))
    if not isinstance(task, WithClasses):
        return {**subject_numbers(manifest.subjects, targets)}
    given = manifest.subject_outcomes
    found = subject_outcomes(
        manifest.subjects,
        targets,
        task.classes,
        given=None if given is None else task.encode(given),
        rule=rule,
    )
    return {**found}


def plan_all(prepared: Prepared) -> Iterator[tuple[str, Fold, int, Plan]]:
    """Yields the plan of every model, fold and initialisation."""
    for fold in prepared.folds:
        for name, experiment in prepared.variants.items():
            for member in range(experiment.factory.loaded.recipe.seeds):
                yield name, fold, member, plan_steps(experiment, fold, member)
