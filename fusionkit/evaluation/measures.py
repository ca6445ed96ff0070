"""How the predictions of a task are judged: metrics, strata of resampling, columns of predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from fusionkit.evaluation.metrics import (
    METRICS,
    FloatArray,
    IntArray,
    predict_classes,
    weighted_metrics,
    why_not_estimable,
)
from fusionkit.task import Task

Outcomes = IntArray | FloatArray

SAME_PREDICTION = "not estimable: every prediction is the same"
"""Why there is no correlation where the outcomes lack nothing."""
ENOUGH = 100
"""Subjects of a class below which the report warns; a rule of thumb for validating a prediction model."""


class Measures(Protocol):
    """How predictions are judged.

    Attributes:
        kind: The kind of task.
        classes: Class names where the outcome is one; the last one is the positive class.
        metrics: What is computed.
        compared: The metrics of paired differences, the main one first.
        columns: Heads of the columns that `cells` fills in predictions.csv.
    """

    kind: str
    classes: tuple[str, ...]
    metrics: tuple[str, ...]
    compared: tuple[str, ...]
    columns: tuple[str, ...]

    def strata(self, outcomes: Outcomes) -> IntArray:
        """Returns (n,) within which subjects are resampled; outcomes are known."""
        ...

    def counts(self, outcomes: Outcomes) -> dict[str, int]:
        """Returns how many outcomes are of each class, or of what else the task counts."""
        ...

    def weighted(
        self,
        outcomes: Outcomes,
        predictions: FloatArray,
        thresholds: float | FloatArray,
        weights: FloatArray,
        metrics: Sequence[str],
    ) -> dict[str, FloatArray]:
        """Returns each metric under each row of weights (b, n), (b,); NaN where there is no value."""
        ...

    def why_not(self, metric: str, outcomes: Outcomes, noun: str = "subject") -> str | None:
        """Says what known outcomes lack for the metric, or None where they lack nothing."""
        ...

    def few(self, counts: Mapping[str, int]) -> list[str]:
        """Returns the warning where `counts` of the tested subjects are small, or nothing."""
        ...

    def cells(self, outcomes: Outcomes, predictions: FloatArray, threshold: float) -> list[list[str]]:
        """Returns the texts of `columns` for each row."""
        ...


class ClassMeasures:
    """Of classes.

    Args:
        classes: Class names; the last one is the positive class.
    """

    kind = "classification"
    metrics: tuple[str, ...] = METRICS
    compared: tuple[str, ...] = ("roc_auc", "accuracy")

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.columns = ("outcome", *(f"probability_{name}" for name in self.classes), "predicted")

    def called(self, predictions: FloatArray, threshold: float | FloatArray) -> IntArray:
        """Returns the class (n,) that each row is called."""
        return predict_classes(predictions, threshold)

    def strata(self, outcomes: Outcomes) -> IntArray:
        """Returns the classes (n,)."""
        return np.asarray(outcomes, dtype=np.int64)

    def counts(self, outcomes: Outcomes) -> dict[str, int]:
        """Returns how many outcomes are of each class."""
        values = outcomes.tolist()
        return {name: values.count(code) for code, name in enumerate(self.classes)}

    def weighted(
        self,
        outcomes: Outcomes,
        predictions: FloatArray,
        thresholds: float | FloatArray,
        weights: FloatArray,
        metrics: Sequence[str],
    ) -> dict[str, FloatArray]:
        """Returns each metric under each row of weights."""
        return weighted_metrics(self.strata(outcomes), predictions, thresholds, weights, metrics)

    def why_not(self, metric: str, outcomes: Outcomes, noun: str = "subject") -> str | None:
        """Says what these classes lack for the metric."""
        return why_not_estimable(metric, self.strata(outcomes), self.classes, noun)

    def few(self, counts: Mapping[str, int]) -> list[str]:
        """Warns where a class has few subjects."""
        if all(count >= ENOUGH for count in counts.values()):
            return []
        shown = ", ".join(f"{count} {name}" for name, count in counts.items())
        return [few_subjects_text(shown, f"{ENOUGH} of a class")]

    def cells(self, outcomes: Outcomes, predictions: FloatArray, threshold: float) -> list[list[str]]:
        """Returns outcome, probabilities and predicted class of each row."""
        names = [*self.classes, ""]  # UNKNOWN is -1: the last name
        called = self.called(predictions, threshold).tolist()
        rows = zip(outcomes.tolist(), predictions.tolist(), called, strict=True)
        return [[names[outcome], *(f"{p:.8f}" for p in said), names[code]] for outcome, said, code in rows]


class NumberMeasures:
    """What the measures of outcomes that are numbers, (n, d), have in common."""

    classes: tuple[str, ...] = ()
    columns: tuple[str, ...]

    def strata(self, outcomes: Outcomes) -> IntArray:
        """Returns zeros (n,): all subjects are resampled together."""
        return np.zeros(len(outcomes), dtype=np.int64)

    def cells(self, outcomes: Outcomes, predictions: FloatArray, threshold: float) -> list[list[str]]:
        """Returns outcomes, blank where unknown, and predictions of each row."""
        columns = self.columns[outcomes.shape[1] :]
        rows = zip(outcomes.tolist(), predictions.tolist(), strict=True)
        return [
            ["" if value != value else shortest(value) for value in known] + prediction_texts(said, columns)
            for known, said in rows
        ]


def shortest(value: float) -> str:
    """Returns the shortest text that reads back as the same number: 1, 0.1, 1e+20."""
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def prediction_texts(values: Sequence[float], columns: Sequence[str]) -> list[str]:
    """Returns a row's predictions as tables write them: probabilities by 8 decimals, numbers exactly."""
    return [
        f"{value:.8f}" if column.startswith("probability_") else shortest(value)
        for value, column in zip(values, columns, strict=True)
    ]


def few_subjects_text(shown: str, than: str) -> str:
    """Returns the warning that few subjects were tested."""
    return (
        f"Few subjects were tested ({shown}): with fewer than {than}, these figures are "
        "uncertain, and a difference that exists can easily be missed."
    )


def measures_of(task: Task) -> Measures:
    """Returns how a task is judged."""
    return _MEASURES[task.kind](task)


def evaluate(
    measures: Measures,
    outcomes: Outcomes,
    predictions: FloatArray,
    thresholds: float | FloatArray,
    metrics: Sequence[str] | None = None,
) -> dict[str, float | None]:
    """Returns the value of each metric, or of some, on known outcomes; None where they cannot give it."""
    weights = np.ones((1, len(outcomes)))
    values = measures.weighted(outcomes, predictions, thresholds, weights, metrics or measures.metrics)
    return {name: None if np.isnan(value[0]) else float(value[0]) for name, value in values.items()}


def _survival(task: Task) -> Measures:
    from fusionkit.evaluation.survival import SurvivalMeasures
    from fusionkit.tasks.survival import Survival

    assert isinstance(task, Survival)
    return SurvivalMeasures(task.horizons)


def _ordinal(task: Task) -> Measures:
    from fusionkit.evaluation.ordinal import OrdinalMeasures

    return OrdinalMeasures(task.classes)


def _multi_label(task: Task) -> Measures:
    from fusionkit.evaluation.multi_label import MultiLabelMeasures

    return MultiLabelMeasures(task.columns)


def _regression(task: Task) -> Measures:
    from fusionkit.evaluation.regression import RegressionMeasures

    return RegressionMeasures()


_MEASURES: Mapping[str, Callable[[Task], Measures]] = {
    "classification": lambda task: ClassMeasures(task.classes),
    "survival": _survival,
    "ordinal": _ordinal,
    "multi_label": _multi_label,
    "regression": _regression,
}
