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
    UNKNOWN,
    FoldPredictions,
    FoldSubjects,
    SampleRows,
    aggregate_subjects,
)
from fusionkit.evaluation.intervals import Estimate, Intervals, Scores, bootstrap
from fusionkit.evaluation.metrics import (
    METRICS,
    choose_threshold,
    evaluate,
    predict_classes,
    why_not_estimable,
)
from fusionkit.evaluation.missing import Blanked, by_curve, by_draw, curve_entries
from fusionkit.recipe.schema import FUSED, EvaluationNode

COMPARED = ("roc_auc", "accuracy")
"""The metrics of paired differences."""
SIMULATED = "SIMULATED DATA: these figures say nothing about patients."
LEAKAGE = (
    "LEAKAGE: split by sample, so samples of one subject may be in training and in test. These figures do "
    "not hold for new subjects."
)
ENOUGH = 100
"""Subjects of a class below which the report warns; a rule of thumb for validating a prediction model."""

Predictions = Mapping[str, Sequence[FoldPredictions]]


def build_report(
    predictions: Predictions,
    outcomes: Mapping[str, int],
    classes: Sequence[str],
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
        outcomes: Class index of each subject (see `subject_outcomes`).
        classes: Class names; the last one is the positive class.
        evaluation: How predictions are judged.
        seed: Of the resamples.
        is_simulated: Whether any of the data were simulated.
        unit: What the split kept apart: subject, or sample, which brands the report.
        blanked: Which models were tested with cells blanked; each is compared with itself without.
    """
    judged, scores, differences, notes = _score(predictions, outcomes, classes, evaluation, seed, blanked)
    counts = _counts(predictions, outcomes, classes)
    warnings = [SIMULATED] if is_simulated else []
    warnings += [LEAKAGE] if unit == "sample" else []
    warnings += few_subjects(counts["subjects_by_class"])
    return {
        "simulated": is_simulated,
        "unit": unit,
        "classes": list(classes),
        "aggregation": evaluation.samples,
        "threshold": evaluation.threshold if len(classes) == 2 else None,
        "interval": evaluation.interval,
        "resamples": evaluation.resamples,
        "counts": counts,
        "models": {
            name: _model_entry(predictions[name], judged[name], scores[name], classes) for name in predictions
        },
        "differences": differences,
        **({"missing": curve_entries(blanked)} if blanked else {}),
        "warnings": warnings + notes + _left_out(judged, classes),
    }


def _score(
    predictions: Predictions,
    outcomes: Mapping[str, int],
    classes: Sequence[str],
    evaluation: EvaluationNode,
    seed: int,
    blanked: Sequence[Blanked],
) -> tuple[dict[str, list[FoldSubjects]], dict[str, Scores], list[dict[str, Any]], list[str]]:
    """Returns every model's folds by subject, its scores, the differences, and what readers should know."""

    def compare(models: Mapping[str, Sequence[FoldSubjects]], reference: str) -> Intervals:
        return bootstrap(
            models,
            classes,
            against={name: reference for name in models if name != reference},
            compared=COMPARED,
            resamples=evaluation.resamples,
            interval=evaluation.interval,
            seed=seed,
        )

    names = {model.name for model in blanked}
    plain = {name: folds for name, folds in predictions.items() if name not in names}
    judged, notes = judge_folds(plain, outcomes, classes, evaluation)
    intervals = compare(judged, FUSED)
    scores, differences = dict(intervals.models), _difference_entries(FUSED, intervals)
    for (name, _), models in by_curve(blanked).items():
        of_models = {model.name: predictions[model.name] for model in models}
        # the notes on thresholds are those of the plain model
        curve, _ = judge_folds(of_models, outcomes, classes, evaluation)
        found = compare({name: by_draw(judged[name], models[0]), **curve}, name)
        scores |= {model: found.models[model] for model in of_models}
        differences += _difference_entries(name, found)
        judged |= curve
    return judged, scores, differences, notes


def judge_folds(
    predictions: Predictions, outcomes: Mapping[str, int], classes: Sequence[str], evaluation: EvaluationNode
) -> tuple[dict[str, list[FoldSubjects]], list[str]]:
    """Brings every fold to subjects and sets its threshold; also returns what readers should know of it."""
    judged: dict[str, list[FoldSubjects]] = {}
    notes: list[str] = []
    if evaluation.threshold == "validation" and len(classes) > 2:
        notes.append("evaluation.threshold: not used, since there are more than two classes.")
    for name, folds in predictions.items():
        judged[name] = []
        for fold in sorted(folds, key=lambda one: (one.repeat, one.fold)):
            rows = aggregate_subjects(fold.test, outcomes, evaluation.samples)
            threshold = 0.5
            if len(classes) == 2:
                threshold, note = _threshold(fold, outcomes, classes, evaluation)
                notes += [f"{name}, repeat {fold.repeat}, fold {fold.fold}: {note}"] if note else []
            judged[name].append(FoldSubjects(fold.repeat, fold.fold, rows, threshold))
    return judged, notes


def _threshold(
    fold: FoldPredictions, outcomes: Mapping[str, int], classes: Sequence[str], evaluation: EvaluationNode
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
    known = rows.outcomes != UNKNOWN
    chosen = choose_threshold(rows.outcomes[known], rows.probabilities[known])
    if chosen is None:
        reason = why_not_estimable("roc_auc", rows.outcomes[known], classes, "validation subject")
        return 0.5, f"the threshold stays at 0.5 ({reason})."
    return chosen, ""


def _model_entry(
    folds: Sequence[FoldPredictions], judged: Sequence[FoldSubjects], scores: Scores, classes: Sequence[str]
) -> dict[str, Any]:
    return {
        "subject": {metric: _as_json(estimate) for metric, estimate in scores.folds.items()},
        "pooled": {metric: _as_json(estimate) for metric, estimate in scores.pooled.items()},
        **_by_sample(folds, judged, classes),
        "n_subjects": scores.n_subjects,
        "folds": [_fold_entry(fold, classes) for fold in judged],
    }


def _as_json(estimate: Estimate) -> dict[str, Any]:
    entry: dict[str, Any] = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return entry | ({"reason": estimate.reason} if estimate.reason else {})


def _fold_entry(fold: FoldSubjects, classes: Sequence[str]) -> dict[str, Any]:
    known = fold.select(fold.rows.outcomes != UNKNOWN)
    values = evaluate(known.rows.outcomes, known.rows.probabilities, known.threshold)
    reasons = _reasons(values, known.rows.outcomes, classes, "subject")
    return {
        "repeat": fold.repeat,
        "fold": fold.fold,
        "n_subjects": len(known.rows.subjects),
        "threshold": fold.threshold if len(classes) == 2 else None,
        "subject": values,
    } | ({"reasons": reasons} if reasons else {})


def _reasons(
    values: Mapping[str, float | None], labels: np.typing.NDArray[np.int64], classes: Sequence[str], noun: str
) -> dict[str, str]:
    return {
        metric: why_not_estimable(metric, labels, classes, noun) or "not estimable"
        for metric, value in values.items()
        if value is None
    }


def _by_sample(
    folds: Sequence[FoldPredictions], judged: Sequence[FoldSubjects], classes: Sequence[str]
) -> dict[str, Any]:
    """Scores the rows of a repeat together, then averages repeats; no interval: rows are not people."""
    thresholds = {(fold.repeat, fold.fold): fold.threshold for fold in judged}
    repeats: dict[int, list[FoldPredictions]] = {}
    for fold in folds:
        repeats.setdefault(fold.repeat, []).append(fold)
    values: dict[str, list[float]] = {metric: [] for metric in METRICS}
    reasons: dict[str, str] = {metric: "not estimable: no sample with a known outcome" for metric in METRICS}
    for group in repeats.values():
        labels = np.concatenate([fold.test.outcomes for fold in group])
        probabilities = np.concatenate([fold.test.probabilities for fold in group])
        cuts = np.concatenate([np.full(len(f.test.samples), thresholds[f.repeat, f.fold]) for f in group])
        known = labels != UNKNOWN
        scored = evaluate(labels[known], probabilities[known], cuts[known])
        reasons |= _reasons(scored, labels[known], classes, "sample")
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
        for metric in COMPARED
    ]


def _counts(predictions: Predictions, outcomes: Mapping[str, int], classes: Sequence[str]) -> dict[str, Any]:
    """Counts the tested subjects and samples, each once."""
    samples: dict[str, int] = {}
    subjects: dict[str, int] = {}
    for folds in predictions.values():
        for fold in folds:
            samples.update(zip(fold.test.samples, fold.test.outcomes.tolist(), strict=True))
            subjects.update((subject, outcomes.get(subject, UNKNOWN)) for subject in fold.test.subjects)
    entry: dict[str, Any] = {}
    for noun, found in (("subjects", subjects), ("samples", samples)):
        values = list(found.values())
        entry[noun] = len(values)
        entry[f"{noun}_by_class"] = {name: values.count(c) for c, name in enumerate(classes)}
        entry[f"{noun}_without_outcome"] = values.count(UNKNOWN)
    return entry


def few_subjects(by_class: Mapping[str, int]) -> list[str]:
    """Returns the warning where few subjects of a class were tested, or nothing."""
    if all(count >= ENOUGH for count in by_class.values()):
        return []
    counts = ", ".join(f"{count} {name}" for name, count in by_class.items())
    return [
        f"Few subjects were tested ({counts}): with fewer than {ENOUGH} of a class, these figures are "
        "uncertain, and a difference that exists can easily be missed."
    ]


def _left_out(judged: Mapping[str, Sequence[FoldSubjects]], classes: Sequence[str]) -> list[str]:
    """Says which metrics are means over fewer folds than there are; models that agree share a sentence."""
    found: dict[str, list[str]] = {}
    for name, folds in judged.items():
        labels = [fold.rows.outcomes[fold.rows.outcomes != UNKNOWN] for fold in folds]
        for metric in METRICS:
            lacking = [i for i, of_fold in enumerate(labels) if why_not_estimable(metric, of_fold, classes)]
            if lacking and len(lacking) < len(folds):
                reason = why_not_estimable(metric, labels[lacking[0]], classes)
                text = f"{metric}: {len(lacking)} of {len(folds)} folds are not in the mean ({reason})"
                found.setdefault(text, []).append(name)
    return [f"{text}: {', '.join(names)}." for text, names in found.items()]


def write_predictions_csv(
    path: Path,
    predictions: Predictions,
    outcomes: Mapping[str, int],
    classes: Sequence[str],
    evaluation: EvaluationNode,
    *,
    is_simulated: bool = False,
) -> None:
    """Writes a row per predicted sample and subject of every model and fold; equal input, equal bytes."""
    from fusionkit.store import write_atomic

    judged, _ = judge_folds(predictions, outcomes, classes, evaluation)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["level", "model", "repeat", "fold", "sample", "subject", "outcome"]
    writer.writerow([*head, *(f"probability_{name}" for name in classes), "predicted", "simulated"])
    names = [*classes, ""]  # UNKNOWN is -1: the last name
    for model, folds in predictions.items():
        by_place = {(fold.repeat, fold.fold): fold.test for fold in folds}
        for fold in judged[model]:
            for row in (*_sample_rows(by_place[fold.repeat, fold.fold], fold), *_subject_rows(fold)):
                level, sample, subject, outcome, probabilities, called = row
                writer.writerow(
                    [level, model, fold.repeat, fold.fold, sample, subject, names[outcome]]
                    + [f"{probability:.8f}" for probability in probabilities]
                    + [names[called], str(is_simulated).lower()]
                )
    write_atomic(path, text.getvalue().encode())


_Row = tuple[str, str, str, int, list[float], int]


def _sample_rows(rows: SampleRows, fold: FoldSubjects) -> Iterator[_Row]:
    called = predict_classes(rows.probabilities, fold.threshold).tolist()
    columns = (rows.samples, rows.subjects, rows.outcomes.tolist(), rows.probabilities.tolist(), called)
    return (("sample", *row) for row in zip(*columns, strict=True))


def _subject_rows(fold: FoldSubjects) -> Iterator[_Row]:
    rows = fold.rows
    called = predict_classes(rows.probabilities, fold.threshold).tolist()
    columns = (rows.subjects, rows.outcomes.tolist(), rows.probabilities.tolist(), called)
    return (("subject", "", *row) for row in zip(*columns, strict=True))
