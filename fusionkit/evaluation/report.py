"""The report of a run: every model's figures by subject with intervals, and the predictions behind them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusionkit.errors import RecipeError
from fusionkit.evaluation.aggregate import (
    FoldPredictions,
    FoldSubjects,
    SampleRows,
    SubjectRows,
    aggregate_subjects,
    is_known,
    outcomes_of_subjects,
)
from fusionkit.evaluation.intervals import Estimate, Intervals, Scores, bootstrap
from fusionkit.evaluation.measures import SAME_PREDICTION, Measures, Outcomes, evaluate
from fusionkit.evaluation.metrics import choose_threshold, label_of
from fusionkit.evaluation.missing import Blanked, by_curve, by_draw, curve_entries
from fusionkit.evaluation.survival import SurvivalMeasures
from fusionkit.recipe.schema import FUSED, EvaluationNode
from fusionkit.task import Outcome

SIMULATED = "SIMULATED DATA: these figures say nothing about patients."
LEAKAGE = (
    "LEAKAGE: split by sample, so samples of one subject may be in training and in test. These figures do "
    "not hold for new subjects."
)

Predictions = Mapping[str, Sequence[FoldPredictions]]


def build_report(
    predictions: Predictions,
    outcomes: Mapping[str, Outcome],
    measures: Measures,
    evaluation: EvaluationNode,
    *,
    seed: int = 0,
    is_simulated: bool = False,
    unit: str = "subject",
    blanked: Sequence[Blanked] = (),
) -> dict[str, Any]:
    """Returns the report as JSON values: no NaN; null, with its reason, where nothing can be estimated.

    Args:
        predictions: Each model's folds, by the model's name.
        outcomes: Outcome of each subject (see `subject_outcomes`).
        measures: How predictions are judged.
        evaluation: How predictions are judged.
        seed: Of the resamples.
        is_simulated: Whether any of the data were simulated.
        unit: What the split kept apart: subject, or sample, which brands the report.
        blanked: Which models were tested with cells blanked; each is compared with itself without.
    """
    judged, scores, differences, notes = _score(predictions, outcomes, measures, evaluation, seed, blanked)
    counts = _counts(predictions, outcomes, measures)
    warnings = [SIMULATED] if is_simulated else []
    warnings += [LEAKAGE] if unit == "sample" else []
    warnings += measures.few(counts["subjects_by_class"])
    return {
        "simulated": is_simulated,
        "unit": unit,
        "task": measures.kind,
        "classes": list(measures.classes),
        "aggregation": evaluation.samples,
        "threshold": evaluation.threshold if len(measures.classes) == 2 else None,
        "interval": evaluation.interval,
        "resamples": evaluation.resamples,
        "counts": counts,
        **_by_horizon(predictions, outcomes, measures),
        "models": {
            name: _model_entry(predictions[name], judged[name], scores[name], measures)
            for name in predictions
        },
        "differences": differences,
        **({"missing": curve_entries(blanked)} if blanked else {}),
        "warnings": warnings + notes + _left_out(judged, measures),
    }


def _score(
    predictions: Predictions,
    outcomes: Mapping[str, Outcome],
    measures: Measures,
    evaluation: EvaluationNode,
    seed: int,
    blanked: Sequence[Blanked],
) -> tuple[dict[str, list[FoldSubjects]], dict[str, Scores], list[dict[str, Any]], list[str]]:
    """Returns every model's folds by subject, its scores, the differences, and what readers should know."""

    def compare(models: Mapping[str, Sequence[FoldSubjects]], reference: str) -> Intervals:
        return bootstrap(
            models,
            measures,
            against={name: reference for name in models if name != reference},
            resamples=evaluation.resamples,
            interval=evaluation.interval,
            seed=seed,
        )

    names = {model.name for model in blanked}
    plain = {name: folds for name, folds in predictions.items() if name not in names}
    judged, notes = judge_folds(plain, outcomes, measures, evaluation)
    intervals = compare(judged, FUSED)
    scores, differences = dict(intervals.models), _difference_entries(FUSED, intervals)
    for (name, _), models in by_curve(blanked).items():
        of_models = {model.name: predictions[model.name] for model in models}
        # the notes on thresholds are those of the plain model
        curve, _ = judge_folds(of_models, outcomes, measures, evaluation)
        found = compare({name: by_draw(judged[name], models[0]), **curve}, name)
        scores |= {model: found.models[model] for model in of_models}
        differences += _difference_entries(name, found)
        judged |= curve
    return judged, scores, differences, notes


def judge_folds(
    predictions: Predictions, outcomes: Mapping[str, Outcome], measures: Measures, evaluation: EvaluationNode
) -> tuple[dict[str, list[FoldSubjects]], list[str]]:
    """Brings every fold to subjects and sets its threshold; also returns what readers should know of it."""
    judged: dict[str, list[FoldSubjects]] = {}
    notes: list[str] = []
    if evaluation.threshold == "validation" and len(measures.classes) > 2:
        notes.append("evaluation.threshold: not used, since there are more than two classes.")
    for name, folds in predictions.items():
        judged[name] = []
        for fold in sorted(folds, key=lambda one: (one.repeat, one.fold)):
            rows = aggregate_subjects(fold.test, outcomes, evaluation.samples)
            threshold = 0.5
            if len(measures.classes) == 2:
                threshold, note = _threshold(fold, outcomes, measures, evaluation)
                notes += [f"{name}, repeat {fold.repeat}, fold {fold.fold}: {note}"] if note else []
            judged[name].append(FoldSubjects(fold.repeat, fold.fold, rows, threshold))
    return judged, notes


def _threshold(
    fold: FoldPredictions, outcomes: Mapping[str, Outcome], measures: Measures, evaluation: EvaluationNode
) -> tuple[float, str]:
    if fold.threshold is not None:
        return fold.threshold, ""
    if evaluation.threshold != "validation":
        return float(evaluation.threshold), ""
    if fold.validation is None:
        raise RecipeError(
            f"evaluation.threshold: repeat {fold.repeat}, fold {fold.fold} has no validation subjects to "
            "set it on. Give split.validation a share, or set a number."
        )
    rows = aggregate_subjects(fold.validation, outcomes, evaluation.samples)
    known = is_known(rows.outcomes)
    labels = measures.strata(rows.outcomes[known])
    chosen = choose_threshold(labels, rows.predictions[known])
    if chosen is None:
        reason = measures.why_not("roc_auc", labels, "validation subject")
        return 0.5, f"the threshold stays at 0.5 ({reason})."
    return chosen, ""


def _model_entry(
    folds: Sequence[FoldPredictions], judged: Sequence[FoldSubjects], scores: Scores, measures: Measures
) -> dict[str, Any]:
    return {
        "subject": {metric: _as_json(estimate) for metric, estimate in scores.folds.items()},
        "pooled": {metric: _as_json(estimate) for metric, estimate in scores.pooled.items()},
        **_by_sample(folds, judged, measures),
        "n_subjects": scores.n_subjects,
        "folds": [_fold_entry(fold, measures) for fold in judged],
    }


def _as_json(estimate: Estimate) -> dict[str, Any]:
    entry: dict[str, Any] = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return entry | ({"reason": estimate.reason} if estimate.reason else {})


def _fold_entry(fold: FoldSubjects, measures: Measures) -> dict[str, Any]:
    known = fold.select(is_known(fold.rows.outcomes))
    values = evaluate(measures, known.rows.outcomes, known.rows.predictions, known.threshold)
    reasons = _reasons(values, known.rows.outcomes, measures, "subject")
    return {
        "repeat": fold.repeat,
        "fold": fold.fold,
        "n_subjects": len(known.rows.subjects),
        "threshold": fold.threshold if len(measures.classes) == 2 else None,
        "subject": values,
    } | ({"reasons": reasons} if reasons else {})


def _reasons(
    values: Mapping[str, float | None], outcomes: Outcomes, measures: Measures, noun: str
) -> dict[str, str]:
    return {
        metric: measures.why_not(metric, outcomes, noun) or SAME_PREDICTION
        for metric, value in values.items()
        if value is None
    }


def _by_sample(
    folds: Sequence[FoldPredictions], judged: Sequence[FoldSubjects], measures: Measures
) -> dict[str, Any]:
    """Scores the rows of a repeat together, then averages repeats; no interval: rows are not people."""
    thresholds = {(fold.repeat, fold.fold): fold.threshold for fold in judged}
    repeats: dict[int, list[FoldPredictions]] = {}
    for fold in folds:
        repeats.setdefault(fold.repeat, []).append(fold)
    values: dict[str, list[float]] = {metric: [] for metric in measures.metrics}
    reasons = dict.fromkeys(measures.metrics, "not estimable: no sample with a known outcome")
    for group in repeats.values():
        labels = np.concatenate([fold.test.outcomes for fold in group])
        predictions = np.concatenate([fold.test.predictions for fold in group])
        cuts = np.concatenate([np.full(len(f.test.samples), thresholds[f.repeat, f.fold]) for f in group])
        known = is_known(labels)
        scored = evaluate(measures, labels[known], predictions[known], cuts[known])
        reasons |= _reasons(scored, labels[known], measures, "sample")
        for metric, value in scored.items():
            values[metric] += [] if value is None else [value]
    entry = {metric: float(np.mean(found)) if found else None for metric, found in values.items()}
    lacking = {metric: reasons[metric] for metric, value in entry.items() if value is None}
    return {"sample": entry} | ({"sample_reasons": lacking} if lacking else {})


def _difference_entries(reference: str, intervals: Intervals) -> list[dict[str, Any]]:
    return [
        {"a": reference, "b": other, "metric": metric, "n_subjects": scores.n_subjects}
        | _as_json(scores.folds[metric])
        | {"pooled": _as_json(scores.pooled[metric])}
        for other, scores in intervals.differences.items()
        for metric in scores.folds
    ]


def _counts(predictions: Predictions, outcomes: Mapping[str, Outcome], measures: Measures) -> dict[str, Any]:
    """Counts the tested subjects and samples, each once."""
    samples: dict[str, Any] = {}
    subjects: dict[str, None] = {}
    shape: tuple[int, ...] = ()
    for folds in predictions.values():
        for fold in folds:
            samples.update(zip(fold.test.samples, fold.test.outcomes, strict=True))
            subjects.update(dict.fromkeys(fold.test.subjects))
            shape = fold.test.outcomes.shape[1:]
    entry: dict[str, Any] = {}
    of_subjects = outcomes_of_subjects(list(subjects), outcomes, shape)
    of_samples = np.array(list(samples.values())).reshape(len(samples), *shape)
    for noun, found in (("subjects", of_subjects), ("samples", of_samples)):
        known = is_known(found)
        entry[noun] = len(found)
        entry[f"{noun}_by_class"] = measures.counts(found[known])
        entry[f"{noun}_without_outcome"] = int((~known).sum())
    return entry


def _by_horizon(
    predictions: Predictions, outcomes: Mapping[str, Outcome], measures: Measures
) -> dict[str, Any]:
    """Returns what a Brier score by a time is read against, of the tested subjects, each once."""
    if not (isinstance(measures, SurvivalMeasures) and measures.horizons):
        return {}
    tested = [fold.test for folds in predictions.values() for fold in folds]
    subjects = dict.fromkeys(subject for rows in tested for subject in rows.subjects)
    found = outcomes_of_subjects(list(subjects), outcomes, (2,))
    return {"horizons": measures.by_horizon(found[is_known(found)])}


def _left_out(judged: Mapping[str, Sequence[FoldSubjects]], measures: Measures) -> list[str]:
    """Says which metrics are means over fewer folds than there are; models that agree share a sentence."""
    found: dict[str, list[str]] = {}
    for name, folds in judged.items():
        known = [fold.rows.outcomes[is_known(fold.rows.outcomes)] for fold in folds]
        for metric in measures.metrics:
            lacking = [i for i, of_fold in enumerate(known) if measures.why_not(metric, of_fold)]
            if lacking and len(lacking) < len(folds):
                reason = measures.why_not(metric, known[lacking[0]])
                text = (
                    f"{label_of(metric)}: {len(lacking)} of {len(folds)} folds are not in the mean ({reason})"
                )
                found.setdefault(text, []).append(name)
    return [f"{text}: {', '.join(names)}." for text, names in found.items()]


def write_predictions_csv(
    path: Path,
    predictions: Predictions,
    outcomes: Mapping[str, Outcome],
    measures: Measures,
    evaluation: EvaluationNode,
    *,
    is_simulated: bool = False,
) -> None:
    """Writes a row per predicted sample and subject of every model and fold; equal input, equal bytes."""
    from fusionkit.store import write_atomic

    judged, _ = judge_folds(predictions, outcomes, measures, evaluation)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["level", "model", "repeat", "fold", "sample", "subject"]
    writer.writerow([*head, *measures.columns, "simulated"])
    end = [str(is_simulated).lower()]
    for model, folds in predictions.items():
        by_place = {(fold.repeat, fold.fold): fold.test for fold in folds}
        for fold in judged[model]:
            tested = by_place[fold.repeat, fold.fold]
            start = [model, fold.repeat, fold.fold]
            for sample, row in zip(tested.samples, _rows(measures, tested, fold), strict=True):
                writer.writerow(["sample", *start, sample, *row, *end])
            for row in _rows(measures, fold.rows, fold):
                writer.writerow(["subject", *start, "", *row, *end])
    write_atomic(path, text.getvalue().encode())


def _rows(measures: Measures, rows: SampleRows | SubjectRows, fold: FoldSubjects) -> Iterator[list[str]]:
    """Yields the subject of each row, its outcome, and what is predicted."""
    cells = measures.cells(rows.outcomes, rows.predictions, fold.threshold)
    return ([subject, *texts] for subject, texts in zip(rows.subjects, cells, strict=True))
