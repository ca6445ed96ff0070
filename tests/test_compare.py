"""compare: rows over seeds, their spread, paired differences corrected for their number."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, roc_auc_score

from fusionkit.evaluation.aggregate import FoldPredictions, SampleRows
from fusionkit.evaluation.compare import Repetition, compare, holm, row_entry
from fusionkit.evaluation.measures import ClassMeasures
from fusionkit.recipe.schema import EvaluationNode
from fusionkit.recipe.task_nodes import SHOWN

CLASSES = ("benign", "malignant")
MEASURES = ClassMeasures(CLASSES)
N = 60
OUTCOMES = {f"p{i}": i % 2 for i in range(N)}


def repetition(shift: float, seed: int, n_folds: int = 1) -> Repetition:
    """Simulated scores of 60 subjects, two samples each; those of one seed share their noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(N) % 2
    scores = 1 / (1 + np.exp(-shift * (labels - 0.5) - rng.normal(size=N)))
    folds = []
    for fold in range(n_folds):
        index = np.repeat(np.arange(fold, N, n_folds), 2)
        rows = SampleRows(
            [f"s{i}.{j % 2}" for j, i in enumerate(index)],
            [f"p{i}" for i in index],
            labels[index],
            np.stack([1 - scores[index], scores[index]], axis=1),
        )
        folds.append(FoldPredictions(0, fold, rows))
    return Repetition(folds, OUTCOMES, EvaluationNode())


def compare_rows(rows, reference=None, metric="roc_auc", resamples=400, against=()):
    references = {name: reference for name in rows if reference and name != reference} | dict(against)
    found = compare(rows, MEASURES, metric, references, resamples=resamples, interval=0.95)
    return {row.name: row for row in found}


def values(one: Repetition, metric: str) -> list[float]:
    """Fold values by scikit-learn, by subject."""
    found = []
    for fold in one.folds:
        scores, labels = fold.test.predictions[::2, 1], fold.test.outcomes[::2]
        is_auc = metric == "roc_auc"
        found.append(roc_auc_score(labels, scores) if is_auc else accuracy_score(labels, scores >= 0.5))
    return found


@pytest.mark.parametrize("metric", ["roc_auc", "accuracy"])
@pytest.mark.parametrize("n_folds", [1, 3])
def test_a_row_is_the_mean_over_seeds_and_folds_with_both_spreads(metric, n_folds):
    seeds = [repetition(1.0, seed, n_folds) for seed in range(3)]
    row = compare_rows({"a": seeds})["a"]
    each = [values(one, metric) for one in seeds]
    assert row.scores.folds[metric].value == pytest.approx(np.mean(each))
    assert row.sd_seeds[metric] == pytest.approx(np.std([np.mean(one) for one in each], ddof=1))
    if n_folds > 1:
        assert row.sd_folds[metric] == pytest.approx(np.mean([np.std(one, ddof=1) for one in each]))
    else:
        assert row.sd_folds[metric] is None
    assert (row.n_seeds, row.n_folds, row.scores.n_subjects) == (3, n_folds, N)


def test_a_single_seed_has_no_spread_over_seeds():
    assert compare_rows({"a": [repetition(1.0, 0)]})["a"].sd_seeds == dict.fromkeys(SHOWN["classification"])


def test_seeds_are_not_further_subjects():
    """Five equal seeds say no more than one: the interval must not shrink."""
    one = compare_rows({"a": [repetition(1.0, 0)]})["a"].scores.folds["roc_auc"]
    five = compare_rows({"a": [repetition(1.0, 0)] * 5})["a"].scores.folds["roc_auc"]
    assert (one.value, one.low, one.high) == pytest.approx((five.value, five.low, five.high))


def test_a_difference_is_row_minus_reference_and_paired():
    rows = {"better": [repetition(2.0, 0)], "worse": [repetition(0.5, 0)], "same": [repetition(2.0, 0)]}
    found = compare_rows(rows, reference="better")
    assert found["better"].difference is None
    worse = found["worse"].difference
    each = {name: values(one[0], "roc_auc")[0] for name, one in rows.items()}
    assert worse.value == pytest.approx(each["worse"] - each["better"])
    assert worse.low <= worse.value <= worse.high < 0
    same = found["same"].difference
    assert (same.value, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_p_values_of_differences_are_corrected_for_all_comparisons_at_once():
    rows = {f"row{i}": [repetition(1 + 0.3 * i, 0)] for i in range(5)}
    found = compare_rows(rows, reference="row0")
    raw = [found[f"row{i}"].p_uncorrected for i in range(1, 5)]
    assert [found[f"row{i}"].difference.p_value for i in range(1, 5)] == holm(raw)


def test_a_row_may_be_compared_with_another_than_the_others_in_one_family():
    rows = {f"row{i}": [repetition(1 + 0.3 * i, i)] for i in range(4)}
    found = compare_rows(rows, reference="row0", against={"row3": "row2", "row0": "row1", "row1": "gone"})
    references = {name: row.reference for name, row in found.items()}
    assert references == {"row0": "row1", "row1": None, "row2": "row0", "row3": "row2"}
    each = {name: values(one[0], "roc_auc")[0] for name, one in rows.items()}
    for name, other in references.items():
        if other is not None:
            assert found[name].difference.value == pytest.approx(each[name] - each[other])
    compared = [row for row in found.values() if row.reference]
    assert [row.difference.p_value for row in compared] == holm([row.p_uncorrected for row in compared])


def test_under_no_difference_p_values_are_seldom_small():
    """Simulated: two models that are equally good on one cohort; 5 % of p-values may be below .05."""
    below = 0
    for seed in range(100):
        rows = {"a": [repetition(1.0, 2 * seed)], "b": [repetition(1.0, 2 * seed + 1)]}
        below += compare_rows(rows, "a", resamples=200)["b"].p_uncorrected < 0.05
    assert below <= 12  # of 100; more has a probability of .003 if it is 5 in 100


def test_no_comparison_without_the_reference():
    found = compare_rows({"a": [repetition(1, 0)], "b": [repetition(1, 1)]}, reference="not there")
    assert [row.difference for row in found.values()] == [None, None]


def test_holm_is_the_textbook_example():
    # Wright 1992, Adjusted p-values for simultaneous inference: sorted, times n - rank, never falling
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_exactly_what_the_step_down_procedure_rejects(p_values):
    corrected = holm(p_values)
    for level in (0.01, 0.05, 0.5):
        rejected = set()
        for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
            if min(1.0, (len(p_values) - place) * p_values[index]) > level:
                break
            rejected.add(index)
        assert {index for index, p in enumerate(corrected) if p <= level} == rejected


def test_an_entry_is_json_and_has_the_reason_of_what_cannot_be_estimated():
    one_class = repetition(1.0, 0)
    rows = {"a": [Repetition(one_class.folds, dict.fromkeys(OUTCOMES, 1), one_class.evaluation)]}
    entry = row_entry(compare_rows(rows)["a"])
    assert entry["subject"]["roc_auc"]["value"] is None
    assert "no benign subject" in entry["subject"]["roc_auc"]["reason"]
    assert entry["difference"] is None
