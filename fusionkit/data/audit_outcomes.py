"""What outcomes that are numbers say about themselves, and which column alone tells them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fusionkit.data.audit_columns import GIVES_AWAY, Column, FloatArray, Subjects, alone
from fusionkit.data.audit_files import Finding
from fusionkit.data.manifest import Manifest
from fusionkit.task import Task

RANKS_ALIKE = 0.95
"""Size of Spearman's correlation of one column with the outcome from which the audit warns; ours."""
_LEAST = 10
"""Subjects below which such a correlation may be chance; ours."""
_CURE = "Leave it out if it is not known before the outcome is."


def same_outcomes(task: Task, manifest: Manifest) -> list[Finding]:
    """Returns the error that a number to be learned is the same in all rows."""
    if task.kind != "regression":
        return []
    known = _known(task.targets(manifest, range(len(manifest)))[:, 0])
    if len(known) < 2 or known.min() < known.max():
        return []
    message = f"task: the outcome is the same in all {len(known)} rows ({task.columns[0]} is {known[0]:g}). "
    return [Finding("outcome", message + "Name another column.")]


def outcome_warnings(
    task: Task,
    manifest: Manifest,
    subjects: Subjects,
    columns: Sequence[Column],
    read_by: Mapping[str, Sequence[str]],
) -> list[Finding]:
    """Returns what is doubtful of outcomes that are numbers, and which columns give them away.

    Args:
        task: What is predicted.
        manifest: The rows.
        subjects: The rows by subject.
        columns: The columns that the recipe reads.
        read_by: Column -> the modalities that read it.
    """
    if task.kind not in ("regression", "survival", "multi_label"):
        return []
    values = task.targets(manifest, range(len(manifest)))
    numbers = [column for column in columns if column.is_number]
    found = list(_doubts(task, values))
    for column in numbers:
        where = f"{' and '.join(read_by[column.name])}: {column.name}"
        if task.kind == "multi_label":
            found += _tells_labels(column, where, task.columns, values, subjects)
        elif column.spec.kind == "numeric":
            found += _tells_number(column, where, task, values, subjects)
    return found


def _known(values: FloatArray) -> FloatArray:
    return values[~np.isnan(values)]


def _doubts(task: Task, values: FloatArray) -> Iterator[Finding]:
    """Yields what can tell nothing: labels that nobody has or lacks, times that are all one."""
    if task.kind == "survival":
        times = _known(values[:, 0])
        if len(times) > 1 and times.min() == times.max():
            message = f"task: every time is the same ({task.columns[0]} is {times[0]:g}). Check the column."
            yield Finding("constant", message)
    for place, name in enumerate(task.columns) if task.kind == "multi_label" else ():
        known = _known(values[:, place])
        if not len(known):
            yield Finding("missing", f"task: {name}: it is known of no row. Leave the label out.")
        elif known.min() == known.max():
            what = "has" if known[0] else "lacks"
            message = f"task: {name}: every row of which it is known {what} it. Leave the label out."
            yield Finding("constant", message)


def _of_subjects(values: FloatArray, subjects: Subjects) -> FloatArray:
    """Returns each subject's mean over the rows (n,) that have a value; NaN where none has."""
    has = ~np.isnan(values)
    owners, n_subjects = subjects.of_row[has], len(subjects.names)
    counts = np.bincount(owners, minlength=n_subjects)
    sums = np.bincount(owners, weights=values[has] / counts[owners], minlength=n_subjects)
    return np.where(counts > 0, sums, np.nan)


def _tells_number(
    column: Column, where: str, task: Task, values: FloatArray, subjects: Subjects
) -> Iterator[Finding]:
    """Warns where a column ranks subjects as the number does, or as the times of those with the event."""
    outcome = values[:, 0]
    if task.kind == "survival":
        outcome = np.where(values[:, 1] > 0, outcome, np.nan)
    numbers = np.array([np.nan, *column.values], dtype=np.float64)[column.codes]
    known, given = _of_subjects(outcome, subjects), _of_subjects(numbers, subjects)
    both = ~np.isnan(known) & ~np.isnan(given)
    if both.sum() < _LEAST:
        return
    correlation = _spearman(known[both], given[both])
    if abs(correlation) < RANKS_ALIKE:
        return
    what = "outcome" if task.kind == "regression" else "time of those with the event"
    yield Finding(
        "giveaway",
        f"{where} gives the outcome away: alone it ranks {int(both.sum())} subjects as the {what} does "
        f"(Spearman {correlation:.3f}). {_CURE}",
    )


def _tells_labels(
    column: Column, where: str, labels: Sequence[str], values: FloatArray, subjects: Subjects
) -> Iterator[Finding]:
    for place, name in enumerate(labels):
        known = _of_subjects(values[:, place], subjects)
        codes = np.where(np.isnan(known), -1, known > 0.5).astype(np.int64)
        auc = alone(column, replace(subjects, labels=codes, classes=(f"no {name}", name)))
        if auc is not None and auc >= GIVES_AWAY and (codes >= 0).sum() >= _LEAST:
            yield Finding(
                "giveaway",
                f"{where} gives the outcome away: alone it reaches an AUC of {auc:.3f} for {name}, "
                f"cross-validated by subject. {_CURE}",
            )


def _spearman(a: FloatArray, b: FloatArray) -> float:
    """Returns the correlation of mean ranks, 0 where one of them has no differences."""
    ranks = []
    for values in (a, b):
        _, tied, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[tied] - (len(values) + 1) / 2)
    scale = float(np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float((ranks[0] * ranks[1]).sum()) / scale if scale else 0.0
