"""Rows of a comparison: values with intervals, spread over seeds and folds, differences to a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fusionkit.evaluation.aggregate import FoldPredictions, FoldSubjects, is_known
from fusionkit.evaluation.intervals import Estimate, Scores, bootstrap
from fusionkit.evaluation.measures import Measures, evaluate
from fusionkit.evaluation.report import judge_folds
from fusionkit.recipe.schema import EvaluationNode
from fusionkit.recipe.task_nodes import SHOWN
from fusionkit.task import Outcome


@dataclass(frozen=True)
class Repetition:
    """What one model says with one seed.

    Args:
        folds: Its predictions.
        outcomes: Subject -> class index, or what else its outcome is.
        evaluation: How they are judged.
        draws: How many draws of blanked cells each fold has, numbered as repeats.
    """

    folds: Sequence[FoldPredictions]
    outcomes: Mapping[str, Outcome]
    evaluation: EvaluationNode
    draws: int = 1


@dataclass(frozen=True)
class Row:
    """One row of a comparison.

    Args:
        name: Its name.
        scores: Mean over seeds and folds of each metric, with its interval over subjects; and pooled.
        sd_seeds: Standard deviation of the seeds' means, by metric; None of a single seed.
        sd_folds: Standard deviation of the folds of a seed, mean over seeds; None of a single fold.
        n_seeds: How many seeds.
        n_folds: How many folds each has.
        difference: Row minus reference, paired; its p_value after Holm's correction.
        p_uncorrected: The p-value before the correction.
        n_compared: How many subjects row and reference have in common.
        reference: The row that it is compared with.
    """

    name: str
    scores: Scores
    sd_seeds: Mapping[str, float | None]
    sd_folds: Mapping[str, float | None]
    n_seeds: int
    n_folds: int
    difference: Estimate | None = None
    p_uncorrected: float | None = None
    n_compared: int | None = None
    reference: str | None = None


def compare(
    rows: Mapping[str, Sequence[Repetition]],
    measures: Measures,
    metric: str,
    references: Mapping[str, str],
    *,
    resamples: int,
    interval: float,
    seed: int = 0,
) -> list[Row]:
    """Compares rows; each seed of a row counts like a repeat, so that a resample has a person in all or none.

    Args:
        rows: Name -> what it says with each seed.
        measures: How predictions are judged.
        metric: What differences are of.
        references: Row -> the one that it is compared with, on common subjects; rows that are not there are
            left out. All comparisons are one family of Holm's.
        resamples: How many resamples of subjects.
        interval: Coverage, such as 0.95.
        seed: Of the resamples.
    """
    shown = SHOWN[measures.kind]
    judged = {name: _judge(repetitions, measures) for name, repetitions in rows.items()}
    intervals = bootstrap(
        {name: [fold for folds in seeds for fold in folds] for name, seeds in judged.items()},
        measures,
        metrics=shown,
        against=references,
        compared=(metric,),
        resamples=resamples,
        interval=interval,
        seed=seed,
    )
    found = []
    for name, seeds in judged.items():
        difference = intervals.differences[name].folds[metric] if name in intervals.differences else None
        found.append(
            Row(
                name,
                intervals.models[name],
                *_spread(seeds, rows[name][0].draws, measures),
                n_seeds=len(seeds),
                n_folds=len(seeds[0]) // rows[name][0].draws,
                n_compared=intervals.differences[name].n_subjects if difference is not None else None,
                difference=None if difference is None else _turn(difference),
                p_uncorrected=None if difference is None else difference.p_value,
                reference=None if difference is None else references[name],
            )
        )
    return _correct(found)


def _judge(repetitions: Sequence[Repetition], measures: Measures) -> list[list[FoldSubjects]]:
    """Returns the folds of each seed by subject; the repeats of all seeds have different numbers."""
    seeds = []
    n_before = 0
    for one in repetitions:
        folds = judge_folds({"": one.folds}, one.outcomes, measures, one.evaluation)[0][""]
        seeds.append([replace(fold, repeat=n_before + fold.repeat) for fold in folds])
        # a whole number of draws, so that a repeat's draws stay together
        n_before += one.draws * (1 + max(fold.repeat for fold in folds) // one.draws)
    return seeds


def _turn(estimate: Estimate) -> Estimate:
    """Returns row minus reference, of reference minus row."""
    if estimate.value is None:
        return estimate
    # 0 - x: a difference of nothing is no minus zero
    low, high = (None if end is None else 0.0 - end for end in (estimate.high, estimate.low))
    return replace(estimate, value=0.0 - estimate.value, low=low, high=high)


def judge_row(repetitions: Sequence[Repetition], measures: Measures) -> list[FoldSubjects]:
    """Returns a row's folds of all seeds by subject."""
    return [fold for folds in _judge(repetitions, measures) for fold in folds]


def _spread(
    seeds: Sequence[Sequence[FoldSubjects]], draws: int, measures: Measures
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Returns both standard deviations of each metric; a fold's value is the mean over its draws."""
    sd_seeds: dict[str, float | None] = {}
    sd_folds: dict[str, float | None] = {}
    values = [
        [((fold.repeat // draws, fold.fold), _values(fold, measures)) for fold in folds] for folds in seeds
    ]
    for metric in SHOWN[measures.kind]:
        known = []
        for of_seed in values:
            by_fold: dict[tuple[int, int], list[float]] = {}
            for place, value in of_seed:
                found = value[metric]
                by_fold.setdefault(place, []).extend([] if found is None else [found])
            known.append(np.array([np.mean(each) for each in by_fold.values() if each]))
        known = [one for one in known if len(one)]
        sd_seeds[metric] = float(np.std([one.mean() for one in known], ddof=1)) if len(known) > 1 else None
        several = [float(np.std(one, ddof=1)) for one in known if len(one) > 1]
        sd_folds[metric] = float(np.mean(several)) if several else None
    return sd_seeds, sd_folds


def _values(fold: FoldSubjects, measures: Measures) -> Mapping[str, float | None]:
    known = fold.select(is_known(fold.rows.outcomes))
    shown = SHOWN[measures.kind]
    return evaluate(measures, known.rows.outcomes, known.rows.predictions, known.threshold, shown)


def _correct(rows: Sequence[Row]) -> list[Row]:
    """Corrects the p-values of all comparisons for their number."""
    compared = [row for row in rows if row.p_uncorrected is not None]
    corrected = dict(
        zip(
            [row.name for row in compared],
            holm([float(row.p_uncorrected or 0) for row in compared]),
            strict=True,
        )
    )
    return [
        row
        if row.difference is None
        else replace(row, difference=replace(row.difference, p_value=corrected.get(row.name)))
        for row in rows
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for their number, in the same order.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    order = np.argsort(p_values, kind="stable")
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(order.tolist()):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def row_entry(row: Row) -> dict[str, Any]:
    """Returns a row as JSON values."""

    def entry(estimate: Estimate | None) -> dict[str, Any] | None:
        if estimate is None:
            return None
        found: dict[str, Any] = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
        return found | ({"reason": estimate.reason} if estimate.reason else {})

    difference = entry(row.difference)
    if difference is not None and row.difference is not None:
        difference |= {"reference": row.reference, "n_subjects": row.n_compared}
        difference |= {"p": row.p_uncorrected, "p_holm": row.difference.p_value}
    return {
        "name": row.name,
        "n_subjects": row.scores.n_subjects,
        "n_seeds": row.n_seeds,
        "n_folds": row.n_folds,
        "subject": {metric: entry(estimate) for metric, estimate in row.scores.folds.items()},
        "pooled": {metric: entry(estimate) for metric, estimate in row.scores.pooled.items()},
        "sd_seeds": dict(row.sd_seeds),
        "sd_folds": dict(row.sd_folds),
        "difference": difference,
    }
