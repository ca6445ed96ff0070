"""The metrics of a classification, plain and under a matrix of bootstrap weights, by the same code."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

METRICS = ("roc_auc", "accuracy", "sensitivity", "specificity", "average_precision", "brier")
"""With two classes the last one is the positive; with more, all but accuracy and brier are macro averages of
one class against the rest."""
_BY = {"brier": "Brier", "auc": "AUC"}
LABELS = {
    "roc_auc": "AUC",
    "accuracy": "accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "average_precision": "AP",
    "concordance": "concordance",
    "quadratic_kappa": "kappa",
    "rank_error": "rank error",
    "r2": "R2",
    "mae": "MAE",
    "rmse": "RMSE",
    "spearman": "Spearman",
}
"""How tables and figures call the metrics that they show."""


def label_of(metric: str) -> str:
    """Returns how tables call a metric: roc_auc is AUC, brier_by_12 is Brier by 12."""
    name, _, horizon = metric.partition("_by_")
    return f"{_BY[name]} by {horizon}" if horizon else LABELS[metric]


def predict_classes(probabilities: FloatArray, thresholds: float | FloatArray) -> IntArray:
    """Calls the positive class from its threshold on; with more than two classes, the most probable one.

    Shape:
        probabilities (n, k), thresholds () or (n,) -> (n,)
    """
    if probabilities.shape[1] == 2:
        return np.asarray(probabilities[:, 1] >= thresholds, dtype=np.int64)
    return np.asarray(probabilities.argmax(axis=1), dtype=np.int64)


def weighted_metrics(
    labels: IntArray,
    probabilities: FloatArray,
    thresholds: float | FloatArray,
    weights: FloatArray,
    metrics: Sequence[str] = METRICS,
) -> dict[str, FloatArray]:
    """Returns each metric under each row of weights; NaN where the weights leave nothing to estimate it from.

    Shape:
        labels (n,), probabilities (n, k), thresholds () or (n,), weights (b, n) -> (b,) for each metric
    """
    if not len(labels):
        return {name: np.full(len(weights), np.nan) for name in metrics}
    called = predict_classes(probabilities, thresholds)
    n_classes = probabilities.shape[1]
    values: dict[str, FloatArray] = {}
    for name in metrics:
        if name == "accuracy":
            values[name] = mean_under(called == labels, weights)
        elif name == "brier":
            values[name] = mean_under(_squared_errors(labels, probabilities), weights)
        else:
            measure = _AGAINST_REST[name]
            columns = (1,) if n_classes == 2 else range(n_classes)
            each = [measure(labels == c, probabilities[:, c], called == c, weights) for c in columns]
            values[name] = each[0] if len(each) == 1 else np.mean(each, axis=0)
    return values


def why_not_estimable(
    metric: str, labels: IntArray, classes: Sequence[str], noun: str = "subject"
) -> str | None:
    """Says what these labels lack for the metric, or None where they lack nothing."""
    present = [bool((labels == c).any()) for c in range(len(classes))]
    if not any(present):
        return f"not estimable: no {noun} with a known outcome"
    lacking = [name for name, is_present in zip(classes, present, strict=True) if not is_present]
    if metric == "specificity" and len(classes) > 2:
        return f"not estimable: only {classes[present.index(True)]} {noun}s" if sum(present) == 1 else None
    needed = {
        "accuracy": (),
        "brier": (),
        "sensitivity": classes[1:] if len(classes) == 2 else classes,
        "specificity": classes[:1],
    }.get(metric, classes)
    absent = [name for name in lacking if name in needed]
    return f"not estimable: no {' or '.join(absent)} {noun}" if absent else None


def choose_threshold(labels: IntArray, probabilities: FloatArray) -> float | None:
    """Returns the threshold with the best balanced accuracy, or None where a class is lacking.

    Candidates lie half-way between neighbouring probabilities, so that none hugs a subject; among equals the
    nearest to one half is taken.
    """
    scores = np.unique(probabilities[:, 1])
    if len(np.unique(labels)) < 2:
        return None
    edges = np.concatenate([[scores[0]], (scores[:-1] + scores[1:]) / 2])
    candidates = np.append(edges, 0.5)
    # Counting by binary search keeps this n log n: validation sets of samples can be large.
    positives, negatives = (np.sort(probabilities[labels == c, 1]) for c in (1, 0))
    sensitivity = 1 - np.searchsorted(positives, candidates, side="left") / len(positives)
    specificity = np.searchsorted(negatives, candidates, side="left") / len(negatives)
    balanced = np.round((sensitivity + specificity) / 2, 12)
    best = candidates[balanced == balanced.max()]
    return float(min(best, key=lambda threshold: (abs(threshold - 0.5), threshold)))


def _ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    quotient = np.full(len(numerator), np.nan)
    np.divide(numerator, denominator, out=quotient, where=denominator > 0)
    return quotient


def mean_under(values: BoolArray | FloatArray, weights: FloatArray) -> FloatArray:
    """Returns (b,) the mean of values (n,) under each row of weights (b, n); NaN where these are all zero."""
    return _ratio(_total(values, weights), weights.sum(axis=1))


def _total(values: BoolArray | FloatArray, weights: FloatArray) -> FloatArray:
    # Not `@`: on busy cores the threads of BLAS wait for each other for 20 times as long as this takes.
    return np.asarray(np.einsum("bn,n->b", weights, values.astype(np.float64)))


def _squared_errors(labels: IntArray, probabilities: FloatArray) -> FloatArray:
    # Two classes: the usual (p - y)^2; Brier's sum over both columns would be twice that.
    errors: FloatArray = (probabilities - np.eye(probabilities.shape[1])[labels]) ** 2
    summed: FloatArray = errors[:, 1] if errors.shape[1] == 2 else errors.sum(axis=1)
    return summed


def _sensitivity(is_class: BoolArray, _: FloatArray, called: BoolArray, weights: FloatArray) -> FloatArray:
    return _ratio(_total(called & is_class, weights), _total(is_class, weights))


def _specificity(is_class: BoolArray, _: FloatArray, called: BoolArray, weights: FloatArray) -> FloatArray:
    return _ratio(_total(~called & ~is_class, weights), _total(~is_class, weights))


def _tie_sums(is_class: BoolArray, scores: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Returns the weight of the class and of the rest at each distinct score, from the highest down."""
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(scores[order]) != 0))
    of_class = weights[:, order]
    of_rest = of_class * ~is_class[order]
    of_class *= is_class[order]
    if len(starts) < len(order):
        of_class, of_rest = (np.add.reduceat(part, starts, axis=1) for part in (of_class, of_rest))
    return of_class, of_rest


def _roc_auc(is_class: BoolArray, scores: FloatArray, _: BoolArray, weights: FloatArray) -> FloatArray:
    """Returns the share of pairs, one of the class and one of the rest, that are in order; ties are half.

    Each row of the class looks up how much of the rest lies below it: the rest alone is ordered and summed.
    """
    order = np.argsort(scores[~is_class], kind="stable")
    ranked = scores[~is_class][order]
    below = np.zeros((len(weights), len(order) + 1))
    np.cumsum(weights[:, np.flatnonzero(~is_class)[order]], axis=1, out=below[:, 1:])
    lower, upper = (np.searchsorted(ranked, scores[is_class], side) for side in ("left", "right"))
    of_class = weights[:, is_class]
    wins = np.einsum("bn,bn->b", of_class, below[:, lower] + below[:, upper]) / 2
    return _ratio(wins, of_class.sum(axis=1) * below[:, -1])


def _average_precision(
    is_class: BoolArray, scores: FloatArray, _: BoolArray, weights: FloatArray
) -> FloatArray:
    of_class, of_rest = _tie_sums(is_class, scores, weights)
    hits = np.cumsum(of_class, axis=1)
    chosen = hits + np.cumsum(of_rest, axis=1)
    precision = np.divide(hits, chosen, out=np.zeros_like(hits), where=chosen > 0)
    value = _ratio(np.einsum("bn,bn->b", of_class, precision), hits[:, -1])
    # With nothing of the rest it is 1 whatever the scores are, which says nothing about them.
    value[of_rest.sum(axis=1) == 0] = np.nan
    return value


_AGAINST_REST: dict[str, Callable[[BoolArray, FloatArray, BoolArray, FloatArray], FloatArray]] = {
    "roc_auc": _roc_auc,
    "sensitivity": _sensitivity,
    "specificity": _specificity,
    "average_precision": _average_precision,
}
