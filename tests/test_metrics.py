"""metrics: every figure equals scikit-learn's, plain and weighted, ties included."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from fusionkit.evaluation import measures
from fusionkit.evaluation.measures import ClassMeasures
from fusionkit.evaluation.metrics import (
    LABELS,
    METRICS,
    choose_threshold,
    predict_classes,
    weighted_metrics,
    why_not_estimable,
)
from fusionkit.recipe.sweep import Metric
from fusionkit.recipe.task_nodes import OF_OUTCOME, SHOWN, UNBOUNDED

CLASSES = {2: ("benign", "malignant"), 3: ("normal", "benign", "malignant")}


def evaluate(labels, probabilities, threshold):
    names = tuple(map(str, range(probabilities.shape[1])))
    return measures.evaluate(ClassMeasures(names), labels, probabilities, threshold)


def both_columns(positive):
    positive = np.asarray(positive, dtype=float)
    return np.stack([1 - positive, positive], axis=1)


@st.composite
def tied_cases(draw, n_classes):
    """Labels with every class, probabilities on a coarse grid so that ties abound, whole-number weights."""
    n = draw(st.integers(n_classes, 14))
    labels = draw(st.lists(st.integers(0, n_classes - 1), min_size=n, max_size=n))
    labels[:n_classes] = range(n_classes)
    grid = draw(
        st.lists(st.lists(st.integers(1, 4), min_size=n_classes, max_size=n_classes), min_size=n, max_size=n)
    )
    probabilities = np.array(grid, dtype=float)
    if n_classes == 2:
        probabilities = both_columns(probabilities[:, 0] / 5)
    else:
        probabilities /= probabilities.sum(axis=1, keepdims=True)
    weights = draw(st.lists(st.lists(st.integers(0, 3), min_size=n, max_size=n), min_size=1, max_size=3))
    weights = np.array(weights, dtype=float)
    weights[:, :n_classes] += 1  # every class stays in every resample
    return np.array(labels, dtype=np.int64), probabilities, weights


def slow(metric, labels, probabilities, threshold, weight):
    """One metric under one row of weights, by scikit-learn alone; macro averages are spelt out."""
    n_classes = probabilities.shape[1]
    called = (
        (probabilities[:, 1] >= threshold).astype(int) if n_classes == 2 else probabilities.argmax(axis=1)
    )
    if metric == "accuracy":
        return oracle.accuracy_score(labels, called, sample_weight=weight)
    if metric == "brier":
        if n_classes == 2:
            return oracle.brier_score_loss(labels, probabilities[:, 1], sample_weight=weight)
        truth = labels[:, None] == np.arange(n_classes)
        return np.average(((probabilities - truth) ** 2).sum(axis=1), weights=weight)
    by_class = {
        "roc_auc": lambda y, score, call: oracle.roc_auc_score(y, score, sample_weight=weight),
        "average_precision": lambda y, score, call: oracle.average_precision_score(
            y, score, sample_weight=weight
        ),
        "sensitivity": lambda y, score, call: oracle.recall_score(y, call, sample_weight=weight),
        "specificity": lambda y, score, call: oracle.recall_score(~y, ~call, sample_weight=weight),
    }[metric]
    columns = [1] if n_classes == 2 else range(n_classes)
    return np.mean([by_class(labels == c, probabilities[:, c], called == c) for c in columns])


@pytest.mark.parametrize("n_classes", [2, 3])
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_weighted_metrics_equal_sklearn_with_sample_weight(n_classes, data):
    labels, probabilities, weights = data.draw(tied_cases(n_classes))
    fast = weighted_metrics(labels, probabilities, 0.6, weights)
    assert tuple(fast) == METRICS
    for metric in METRICS:
        expected = [slow(metric, labels, probabilities, 0.6, weight) for weight in weights]
        np.testing.assert_allclose(fast[metric], expected, atol=1e-12, err_msg=metric)


@pytest.mark.parametrize("n_classes", [2, 3])
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_plain_metrics_equal_sklearn(n_classes, data):
    labels, probabilities, _ = data.draw(tied_cases(n_classes))
    plain = evaluate(labels, probabilities, 0.6)
    for metric in METRICS:
        assert plain[metric] == pytest.approx(slow(metric, labels, probabilities, 0.6, None), abs=1e-12)
    if n_classes == 3:
        macro = oracle.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
        assert plain["roc_auc"] == pytest.approx(macro, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_weight_of_two_is_the_row_twice(data):
    labels, probabilities, weights = data.draw(tied_cases(2))
    row = weights[:1]
    times = row[0].astype(int)
    repeated = evaluate(labels.repeat(times), probabilities.repeat(times, axis=0), 0.5)
    for metric, value in weighted_metrics(labels, probabilities, 0.5, row).items():
        assert value[0] == pytest.approx(repeated[metric], abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_the_order_of_the_rows_does_not_matter(data):
    labels, probabilities, _ = data.draw(tied_cases(3))
    order = np.array(data.draw(st.permutations(range(len(labels)))))
    assert evaluate(labels[order], probabilities[order], 0.5) == pytest.approx(
        evaluate(labels, probabilities, 0.5)
    )


def test_brier_of_two_classes_is_the_mean_squared_error_of_the_positive_class():
    assert evaluate(np.array([0, 1]), both_columns([0.1, 0.6]), 0.5)["brier"] == pytest.approx(
        (0.01 + 0.16) / 2
    )


def test_a_probability_at_the_threshold_is_positive_and_thresholds_may_differ_by_row():
    assert predict_classes(both_columns([0.49, 0.5, 0.51]), 0.5).tolist() == [0, 1, 1]
    assert predict_classes(both_columns([0.4, 0.4]), np.array([0.3, 0.5])).tolist() == [1, 0]


def test_more_than_two_classes_take_the_most_probable():
    assert predict_classes(np.array([[0.2, 0.5, 0.3], [0.4, 0.3, 0.3]]), 0.5).tolist() == [1, 0]


def test_one_class_only_gives_none_where_the_other_is_needed():
    values = evaluate(np.array([0, 0]), both_columns([0.2, 0.7]), 0.5)
    assert {name for name, value in values.items() if value is None} == {
        "roc_auc",
        "sensitivity",
        "average_precision",
    }
    assert values["specificity"] == 0.5
    assert values["accuracy"] == 0.5


def test_average_precision_is_not_one_for_want_of_negatives():
    assert evaluate(np.array([1, 1]), both_columns([0.2, 0.7]), 0.5)["average_precision"] is None


@pytest.mark.parametrize("n_classes", [2, 3])
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_there_is_a_reason_exactly_where_there_is_no_value(n_classes, data):
    labels = np.array(data.draw(st.lists(st.integers(0, n_classes - 1), max_size=4)), dtype=np.int64)
    probabilities = np.full((len(labels), n_classes), 1 / n_classes)
    for metric, value in evaluate(labels, probabilities, 0.5).items():
        assert (why_not_estimable(metric, labels, CLASSES[n_classes]) is not None) == (value is None), metric


@pytest.mark.parametrize(
    ("metric", "labels", "n_classes", "text"),
    [
        ("roc_auc", [0, 0], 2, "not estimable: no malignant subject"),
        ("roc_auc", [1], 2, "not estimable: no benign subject"),
        ("sensitivity", [0], 2, "not estimable: no malignant subject"),
        ("specificity", [1], 2, "not estimable: no benign subject"),
        ("average_precision", [0, 0], 3, "not estimable: no benign or malignant subject"),
        ("specificity", [1, 1], 3, "not estimable: only benign subjects"),
        ("accuracy", [], 2, "not estimable: no subject with a known outcome"),
        ("accuracy", [0], 2, None),
        ("specificity", [0, 1], 3, None),
    ],
)
def test_reasons(metric, labels, n_classes, text):
    assert why_not_estimable(metric, np.array(labels, dtype=np.int64), CLASSES[n_classes]) == text


def test_weights_that_leave_a_class_out_give_nan_for_that_resample_only():
    weights = np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 0.0]])
    values = weighted_metrics(np.array([0, 1]), both_columns([0.2, 0.7]), 0.5, weights)
    np.testing.assert_array_equal(values["roc_auc"], [1, np.nan, np.nan])
    np.testing.assert_array_equal(values["accuracy"], [1, 1, np.nan])


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_the_chosen_threshold_has_the_best_balanced_accuracy(data):
    labels, probabilities, _ = data.draw(tied_cases(2))
    chosen = choose_threshold(labels, probabilities)
    tried = [0.0, *(probabilities[:, 1] - 0.01), *(probabilities[:, 1] + 0.01)]
    scores = [oracle.balanced_accuracy_score(labels, probabilities[:, 1] >= threshold) for threshold in tried]
    best = oracle.balanced_accuracy_score(labels, probabilities[:, 1] >= chosen)
    assert best == pytest.approx(max(scores))


def test_the_chosen_threshold_lies_between_subjects_and_stays_near_one_half():
    assert choose_threshold(np.array([0, 1]), both_columns([0.1, 0.3])) == pytest.approx(0.2)
    assert choose_threshold(np.array([0, 1]), both_columns([0.4, 0.9])) == 0.5
    assert choose_threshold(np.array([1, 1]), both_columns([0.4, 0.9])) is None


def test_what_sweeps_may_ask_for_and_tables_call_by_name_is_what_is_shown():
    shown = {metric for metrics in SHOWN.values() for metric in metrics}
    assert set(get_args(Metric)) == shown
    assert set(LABELS) == shown
    assert set(OF_OUTCOME) < set(UNBOUNDED) < shown
