"""ROC curves with intervals over subjects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fusionkit.evaluation.aggregate import UNKNOWN, FoldSubjects
from fusionkit.evaluation.intervals import resample_weights
from fusionkit.evaluation.metrics import FloatArray, IntArray

GRID = np.linspace(0, 1, 201)
"""False positive rates at which a curve is given."""
_CHUNK = 100


@dataclass(frozen=True, eq=False)
class RocCurve:
    """A mean curve and its interval, each (201,): true positive rates at `GRID`."""

    mean: FloatArray
    low: FloatArray
    high: FloatArray


def roc_curve(
    folds: Sequence[FoldSubjects], *, resamples: int = 500, interval: float = 0.95, seed: int = 0
) -> RocCurve | None:
    """Returns the curve of two classes, None where one of them was not tested.

    The folds of a repeat are taken together, and the curves of repeats averaged at equal false positive rates
    (vertical averaging: Fawcett 2006, An introduction to ROC analysis, section 9.2). A resample has a subject
    in all repeats or in none.
    """
    subjects: dict[str, int] = {}
    for fold in folds:
        for subject, outcome in zip(fold.rows.subjects, fold.rows.outcomes.tolist(), strict=True):
            if outcome != UNKNOWN:
                subjects[subject] = outcome
    outcomes = np.array([subjects[subject] for subject in sorted(subjects)], dtype=np.int64)
    if len(np.unique(outcomes)) < 2:
        return None
    place = {subject: index for index, subject in enumerate(sorted(subjects))}
    repeats = [_ordered(group, place) for group in _by_repeat(folds)]
    mean = _curves(repeats, np.ones((1, len(outcomes))))[0]
    drawn = [_curves(repeats, weights) for weights in resample_weights(outcomes, resamples, seed, _CHUNK)]
    low, high = np.quantile(np.concatenate(drawn), [(1 - interval) / 2, (1 + interval) / 2], axis=0)
    return RocCurve(mean, low, high)


def _by_repeat(folds: Sequence[FoldSubjects]) -> list[list[FoldSubjects]]:
    groups: dict[int, list[FoldSubjects]] = {}
    for fold in folds:
        groups.setdefault(fold.repeat, []).append(fold)
    return list(groups.values())


def _ordered(folds: Sequence[FoldSubjects], place: dict[str, int]) -> tuple[IntArray, IntArray, IntArray]:
    """Returns a repeat's subjects from the highest score on: place, outcome, and where a run of ties ends."""
    known = [fold.select(fold.rows.outcomes != UNKNOWN).rows for fold in folds]
    index = np.array([place[subject] for rows in known for subject in rows.subjects], dtype=np.int64)
    labels = np.concatenate([rows.outcomes for rows in known])
    scores = np.concatenate([rows.predictions[:, 1] for rows in known])
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    return index[order], labels[order], ends


def _curves(repeats: Sequence[tuple[IntArray, IntArray, IntArray]], weights: FloatArray) -> FloatArray:
    """Returns (resamples, 201): the mean over repeats."""
    curves = np.zeros((len(weights), len(GRID)))
    for index, labels, ends in repeats:
        of_rows = weights[:, index]
        true, false = (np.cumsum(of_rows * (labels == label), axis=1)[:, ends] for label in (1, 0))
        for number, (hits, alarms) in enumerate(zip(true, false, strict=True)):
            curves[number] += _at_grid(hits / max(hits[-1], 1), alarms / max(alarms[-1], 1))
    return curves / len(repeats)


def _at_grid(hits: FloatArray, alarms: FloatArray) -> FloatArray:
    """Returns the true positive rates at `GRID`, the highest where the curve rises straight up."""
    alarms, hits = np.append(0.0, alarms), np.append(0.0, hits)
    last = np.append(np.diff(alarms) > 0, True)  # of equal false positive rates, the highest point
    return np.asarray(np.interp(GRID, alarms[last], hits[last]))
