"""aggregate: samples become subjects; contradictions name the subjects."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionkit.errors import DataError, RecipeError
from fusionkit.evaluation.aggregate import UNKNOWN, SampleRows, aggregate_subjects, subject_outcomes

CLASSES = ("benign", "malignant")


def rows_of(subjects, positive):
    positive = np.asarray(positive, dtype=float)
    n = len(subjects)
    return SampleRows(
        [f"s{i}" for i in range(n)],
        subjects,
        np.full(n, UNKNOWN),
        np.stack([1 - positive, positive], axis=1),
    )


cohorts = st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.01, 0.99)), min_size=1, max_size=12)


@settings(deadline=None)
@given(cohort=cohorts)
def test_each_rule_equals_a_plain_loop(cohort):
    subjects, positive = zip(*cohort, strict=True)
    values = {
        subject: np.array([p for s, p in cohort if s == subject]) for subject in dict.fromkeys(subjects)
    }
    expected = {
        "mean_probability": [v.mean() for v in values.values()],
        "mean_logit": [1 / (1 + np.exp(-np.log(v / (1 - v)).mean())) for v in values.values()],
        "max_probability": [v.max() for v in values.values()],
        "vote": [np.mean([1 if p > 0.5 else 0.5 if p == 0.5 else 0 for p in v]) for v in values.values()],
    }
    for rule, numbers in expected.items():
        found = aggregate_subjects(rows_of(subjects, positive), {}, rule)
        assert found.subjects == tuple(values)
        np.testing.assert_allclose(found.predictions[:, 1], numbers, atol=1e-9)
        np.testing.assert_allclose(found.predictions.sum(axis=1), 1, atol=1e-9)


def test_samples_vote_for_any_number_of_classes_and_share_a_tie():
    probabilities = np.array([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2], [0.1, 0.2, 0.7], [0.1 + 0.2, 0.3, 0.4]])
    rows = SampleRows(list("1234"), list("aaab"), np.full(4, UNKNOWN), probabilities)
    found = aggregate_subjects(rows, {}, "vote")
    np.testing.assert_allclose(found.predictions, [[0.5 / 3, 1.5 / 3, 1 / 3], [0, 0, 1]])


@settings(deadline=None)
@given(cohort=cohorts, data=st.data())
def test_the_order_of_samples_does_not_change_a_bit(cohort, data):
    shuffled = data.draw(st.permutations(cohort))
    tables = []
    for rows in (cohort, shuffled):
        found = aggregate_subjects(rows_of(*map(list, zip(*rows, strict=True))), {})
        tables.append(dict(zip(found.subjects, found.predictions.tolist(), strict=True)))
    assert tables[0] == tables[1]


def test_unknown_outcomes_are_kept():
    found = aggregate_subjects(rows_of(["a", "b", "a"], [0.1, 0.2, 0.3]), {"a": 1})
    assert found.subjects == ("a", "b")
    assert found.outcomes.tolist() == [1, UNKNOWN]


def test_one_saturated_image_does_not_make_the_mean_logit_infinite():
    found = aggregate_subjects(rows_of(["a", "a"], [0.0, 1.0]), {}, "mean_logit")
    np.testing.assert_allclose(found.predictions, [[0.5, 0.5]])


def test_three_classes_have_a_mean_but_no_maximum():
    rows = SampleRows(["1", "2"], ["a", "a"], np.array([0, 0]), np.array([[0.2, 0.3, 0.5], [0.4, 0.3, 0.3]]))
    np.testing.assert_allclose(aggregate_subjects(rows, {}).predictions, [[0.3, 0.3, 0.4]])
    with pytest.raises(RecipeError) as caught:
        aggregate_subjects(rows, {}, "max_probability")
    assert str(caught.value) == (
        "evaluation.samples: max_probability is for two classes (there are 3). "
        "Use mean_probability or mean_logit."
    )


def test_no_rows_give_no_subjects():
    found = aggregate_subjects(rows_of([], []), {})
    assert found.predictions.shape == (0, 2)
    assert found.subjects == ()


def test_a_hundred_thousand_samples_are_quick():
    subjects = [f"p{i % 5000}" for i in range(100_000)]
    rows = rows_of(subjects, np.linspace(0, 1, 100_000))
    for rule in ("mean_probability", "mean_logit", "max_probability"):
        start = time.process_time()
        assert len(aggregate_subjects(rows, {}, rule).subjects) == 5000
        assert time.process_time() - start < 1


def test_broken_predictions_are_refused():
    with pytest.raises(ValueError, match=r"^predictions: sample s1 has no finite prediction$"):
        rows_of(["a", "b"], [0.5, np.nan])
    with pytest.raises(ValueError, match=r"the lengths differ \(2 samples, 1 subjects, 2 outcomes, 2 pred"):
        SampleRows(["1", "2"], ["a"], np.array([0, 0]), np.full((2, 2), 0.5))


def test_the_samples_unanimous_outcome_is_the_subjects():
    assert subject_outcomes(["a", "b", "a", "c"], [1, 0, UNKNOWN, UNKNOWN], CLASSES) == {
        "a": 1,
        "b": 0,
        "c": UNKNOWN,
    }


def test_a_given_outcome_wins_and_its_gaps_fall_to_the_samples():
    found = subject_outcomes(["a", "a", "b"], [0, 1, 1], CLASSES, given=[1, UNKNOWN, UNKNOWN])
    assert found == {"a": 1, "b": 1}


def test_any_positive_makes_a_mixed_subject_positive():
    found = subject_outcomes(["a", "a", "b"], [1, 0, 0], CLASSES, rule="any_positive")
    assert found == {"a": 1, "b": 0}


def test_every_contradiction_is_named_at_once():
    with pytest.raises(DataError) as caught:
        subject_outcomes(
            ["a", "a", "a", "b", "b", "c", "c", "d"],
            [0, 1, 1, 0, 1, 0, 0, 0],
            CLASSES,
            given=[UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, 0, 1, 1],
        )
    assert caught.value.problems == (
        "subject_outcome: rows of one subject give different ones (c: 1 benign, 1 malignant). "
        "Give each subject one outcome.",
        "outcome: samples of one subject have different ones (a: 1 benign, 2 malignant; "
        "b: 1 benign, 1 malignant). "
        "Give a column for subject_outcome, or set evaluation.subject_outcome: any_positive.",
    )


def test_any_positive_does_not_settle_what_holds_no_positive():
    with pytest.raises(DataError, match="a: 1 normal, 1 benign"):
        subject_outcomes(["a", "a"], [0, 1], ("normal", "benign", "malignant"), rule="any_positive")


def test_a_long_list_of_contradictions_is_cut():
    subjects = [f"p{i // 2}" for i in range(50)]
    with pytest.raises(DataError, match="; and 5 more"):
        subject_outcomes(subjects, [i % 2 for i in range(50)], CLASSES)
