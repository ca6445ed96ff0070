"""intervals: subjects are resampled, once for every fold, repeat and model."""

from __future__ import annotations

from math import erf, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, r2_score, roc_auc_score

from fusionkit.evaluation import intervals
from fusionkit.evaluation.aggregate import UNKNOWN, FoldSubjects, SubjectRows
from fusionkit.evaluation.intervals import bootstrap, resample_weights
from fusionkit.evaluation.measures import ClassMeasures
from fusionkit.evaluation.regression import RegressionMeasures

CLASSES = ("benign", "malignant")
MEASURES = ClassMeasures(CLASSES)


def fold_of(repeat, fold, subjects, labels, positive, threshold=0.5):
    positive = np.asarray(positive, dtype=float)
    rows = SubjectRows(
        subjects, np.asarray(labels, dtype=np.int64), np.stack([1 - positive, positive], axis=1)
    )
    return FoldSubjects(repeat, fold, rows, threshold)


def simulate(n=40, n_folds=4, repeats=1, shift=1.0, seed=0, decimals=3):
    """Folds of a cohort of n persons; probabilities are rounded so that there are ties."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    folds = []
    for repeat in range(repeats):
        order = np.random.default_rng(repeat).permutation(n)
        for fold in range(n_folds):
            chosen = order[fold::n_folds]
            scores = 1 / (1 + np.exp(-shift * (labels[chosen] - 0.5) - rng.normal(size=len(chosen))))
            subjects = [f"p{i}" for i in chosen]
            folds.append(fold_of(repeat, fold, subjects, labels[chosen], scores.round(decimals)))
    return folds


def naive(folds, weights, metric):
    """Mean of fold values, by scikit-learn, under {subject: weight}; folds that lack a class are left out."""
    values = []
    for fold in folds:
        weight = np.array([weights[subject] for subject in fold.rows.subjects])
        labels, scores = fold.rows.outcomes, fold.rows.predictions[:, 1]
        if metric == "accuracy" and weight.sum():
            values.append(accuracy_score(labels, scores >= fold.threshold, sample_weight=weight))
        if metric == "roc_auc" and len(set(labels[weight > 0])) == 2:
            values.append(roc_auc_score(labels, scores, sample_weight=weight))
    return np.mean(values)


AGAINST = {"image": "fused", "copy": "fused", "other": "fused"}


def naive_pooled(folds, weights, metric):
    repeats = sorted({fold.repeat for fold in folds})
    values = []
    for repeat in repeats:
        group = [fold for fold in folds if fold.repeat == repeat]
        subjects = [subject for fold in group for subject in fold.rows.subjects]
        labels = np.concatenate([fold.rows.outcomes for fold in group])
        scores = np.concatenate([fold.rows.predictions[:, 1] for fold in group])
        values.append(naive([fold_of(repeat, 0, subjects, labels, scores)], weights, metric))
    return np.mean(values)


def test_values_and_intervals_equal_a_naive_loop():
    models = {"fused": simulate(repeats=2), "image": simulate(repeats=2, shift=0.3, seed=1, decimals=1)}
    found = bootstrap(models, MEASURES, against=AGAINST, resamples=40, interval=0.9, seed=5)
    cohort = sorted({subject for fold in models["fused"] for subject in fold.rows.subjects})
    outcomes = np.array([int(subject[1:]) % 2 for subject in cohort])
    draws = np.concatenate(list(resample_weights(outcomes, 40, 5, 40)))
    draws = [dict(zip(cohort, row, strict=True)) for row in draws]
    ones = dict.fromkeys(cohort, 1)
    for metric in ("roc_auc", "accuracy"):
        for scoring, kind in ((naive, "folds"), (naive_pooled, "pooled")):
            values = {name: scoring(folds, ones, metric) for name, folds in models.items()}
            spread = {name: np.array([scoring(f, w, metric) for w in draws]) for name, f in models.items()}
            for name in models:
                entry = getattr(found.models[name], kind)[metric]
                expected = [values[name], *np.quantile(spread[name], [0.05, 0.95])]
                np.testing.assert_allclose([entry.value, entry.low, entry.high], expected, atol=1e-12)
            entry = getattr(found.differences["image"], kind)[metric]
            contrast = spread["fused"] - spread["image"]
            expected = [values["fused"] - values["image"], *np.quantile(contrast, [0.05, 0.95])]
            np.testing.assert_allclose([entry.value, entry.low, entry.high], expected, atol=1e-12)


def test_weights_keep_the_class_sizes_and_do_not_depend_on_chunks():
    outcomes = np.array([0, 1, 1, 0, 1, 2])
    whole = np.concatenate(list(resample_weights(outcomes, 50, 3, 50)))
    pieces = np.concatenate(list(resample_weights(outcomes, 50, 3, 7)))
    np.testing.assert_array_equal(whole, pieces)
    for label, size in enumerate(np.bincount(outcomes)):
        assert (whole[:, outcomes == label].sum(axis=1) == size).all()
    assert not np.array_equal(whole, np.concatenate(list(resample_weights(outcomes, 50, 4, 50))))


def test_chunks_bound_the_memory_and_change_nothing(monkeypatch):
    models = {"fused": simulate()}
    whole = bootstrap(models, MEASURES, resamples=100)
    monkeypatch.setattr(intervals, "_MATRIX_ENTRIES", 7 * 40)
    seen = []

    def spy(*arguments):
        for weights in resample_weights(*arguments):
            seen.append(len(weights))
            yield weights

    monkeypatch.setattr(intervals, "resample_weights", spy)
    chunked = bootstrap(models, MEASURES, resamples=100)
    assert max(seen) == 7
    for metric, entry in whole.models["fused"].folds.items():
        assert chunked.models["fused"].folds[metric].low == pytest.approx(entry.low, abs=1e-12)


@pytest.mark.parametrize("n_folds", [1, 10])
def test_explained_variance_of_small_folds_is_that_of_all_together(n_folds):
    """Resampled, the R2 of six subjects falls: the mean over folds would lie above most of its resamples."""
    rng = np.random.default_rng(0)
    known = rng.normal(size=60)
    said = 0.6 * known + 0.6 * rng.normal(size=60)
    folds = [
        FoldSubjects(
            0, fold, SubjectRows([f"p{i}" for i in chosen], known[chosen, None], said[chosen, None]), 0.5
        )
        for fold, chosen in enumerate(np.arange(60).reshape(n_folds, -1))
    ]
    found = bootstrap({"m": folds}, RegressionMeasures(), resamples=500).models["m"]
    assert found.folds["r2"] == found.pooled["r2"]
    assert found.folds["r2"].value == pytest.approx(r2_score(known, said))
    assert found.folds["mae"].value == pytest.approx(np.abs(known - said).mean())
    low, value, high = found.folds["r2"].low, found.folds["r2"].value, found.folds["r2"].high
    assert 0.25 < (value - low) / (high - low) < 0.75


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_the_order_of_rows_and_folds_does_not_matter(data):
    folds = simulate(n=16, n_folds=2, repeats=2, decimals=1)
    shuffled = []
    for fold in data.draw(st.permutations(folds)):
        order = np.array(data.draw(st.permutations(range(len(fold.rows.subjects)))))
        rows = fold.rows
        subjects = [rows.subjects[i] for i in order]
        shuffled.append(
            fold_of(fold.repeat, fold.fold, subjects, rows.outcomes[order], rows.predictions[order, 1])
        )
    a, b = (bootstrap({"m": one}, MEASURES, resamples=100).models["m"] for one in (folds, shuffled))
    for kind in ("folds", "pooled"):
        for metric, entry in getattr(a, kind).items():
            other = getattr(b, kind)[metric]
            assert (other.value, other.low, other.high) == pytest.approx((entry.value, entry.low, entry.high))


def test_the_same_seed_gives_the_same_and_another_seed_another():
    models = {"fused": simulate()}
    assert bootstrap(models, MEASURES, seed=1) == bootstrap(models, MEASURES, seed=1)
    assert bootstrap(models, MEASURES, seed=1) != bootstrap(models, MEASURES, seed=2)


def test_identical_models_differ_by_exactly_nothing():
    models = {"fused": simulate(repeats=2), "copy": simulate(repeats=2)}
    found = bootstrap(models, MEASURES, against=AGAINST, resamples=200).differences["copy"]
    for kind in (found.folds, found.pooled):
        for entry in kind.values():
            assert (entry.value, entry.low, entry.high) == (0, 0, 0)


def test_the_same_repeat_five_times_is_worth_no_more_than_once():
    once = simulate()
    again = [FoldSubjects(repeat, f.fold, f.rows, f.threshold) for repeat in range(5) for f in once]
    one = bootstrap({"m": once}, MEASURES).models["m"]
    five = bootstrap({"m": again}, MEASURES).models["m"]
    assert five.n_subjects == one.n_subjects == 40
    for metric, entry in one.folds.items():
        other = five.folds[metric]
        assert (other.value, other.low, other.high) == pytest.approx((entry.value, entry.low, entry.high))


def test_differences_are_paired_on_the_common_subjects_of_a_fold():
    fused = simulate(n=20, n_folds=2)
    alone = [
        fold.select(np.array([subject not in ("p0", "p1", "p2") for subject in fold.rows.subjects]))
        for fold in simulate(n=20, n_folds=2, seed=3)
    ]
    found = bootstrap({"fused": fused, "image": alone}, MEASURES, against=AGAINST, resamples=100)
    assert found.models["fused"].n_subjects == 20
    assert found.models["image"].n_subjects == 17
    assert found.differences["image"].n_subjects == 17
    cut = [f.select(np.array([s not in ("p0", "p1", "p2") for s in f.rows.subjects])) for f in fused]
    ones = {f"p{i}": 1 for i in range(20)}
    expected = naive(cut, ones, "roc_auc") - naive(alone, ones, "roc_auc")
    assert found.differences["image"].folds["roc_auc"].value == pytest.approx(expected)


def test_a_split_by_sample_counts_a_person_once():
    folds = [
        fold_of(0, 0, ["a", "b", "c"], [0, 1, 1], [0.1, 0.8, 0.05]),
        fold_of(0, 1, ["a", "b"], [0, 1], [0.3, 0.7]),
    ]
    found = bootstrap({"m": folds}, MEASURES, resamples=100).models["m"]
    assert found.n_subjects == 3
    assert found.pooled["accuracy"].value == pytest.approx(4 / 5)


def test_a_fold_that_only_one_model_has_is_not_compared():
    fused = simulate(n=20, n_folds=2)
    found = bootstrap({"fused": fused, "image": fused[:1]}, MEASURES, against=AGAINST, resamples=100)
    assert found.differences["image"].n_subjects == 10


def test_subjects_of_unknown_outcome_are_not_scored():
    with_unknown = fold_of(0, 0, ["a", "b", "c", "d", "e"], [0, 1, 0, 1, UNKNOWN], [0.1, 0.8, 0.6, 0.4, 0.99])
    without = fold_of(0, 0, ["a", "b", "c", "d"], [0, 1, 0, 1], [0.1, 0.8, 0.6, 0.4])
    assert bootstrap({"m": [with_unknown]}, MEASURES) == bootstrap({"m": [without]}, MEASURES)


def test_a_fold_without_a_class_is_left_out_of_the_mean_and_kept_in_the_pool():
    folds = [
        fold_of(0, 0, ["a", "b", "c"], [0, 1, 1], [0.1, 0.8, 0.05]),
        fold_of(0, 1, ["d", "e"], [0, 0], [0.9, 0.2]),
    ]
    found = bootstrap({"m": folds}, MEASURES, resamples=100).models["m"]
    assert found.folds["roc_auc"].value == 0.5
    assert found.pooled["roc_auc"].value == pytest.approx(2 / 6)
    assert found.folds["accuracy"].value == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_what_cannot_be_estimated_says_why():
    folds = [fold_of(0, 0, ["a", "b"], [0, 0], [0.1, 0.8]), fold_of(0, 1, ["c"], [1], [0.9])]
    found = bootstrap({"m": folds, "none": []}, MEASURES, against={"m": "none"}, resamples=100)
    entry = found.models["m"].folds["roc_auc"]
    assert (entry.value, entry.low, entry.high) == (None, None, None)
    assert entry.reason == "not estimable in any of 2: no malignant subject"
    assert found.models["m"].pooled["roc_auc"].value == 1
    assert found.models["none"].folds["accuracy"].reason == "not estimable: no subject with a known outcome"
    assert found.differences["m"].folds["accuracy"].reason == "not estimable: no subject with a known outcome"


def test_leave_one_out_is_scored_by_its_pool():
    labels, scores = [0, 1, 0, 1], [0.2, 0.6, 0.3, 0.9]
    folds = [fold_of(0, i, [f"p{i}"], [labels[i]], [scores[i]]) for i in range(4)]
    found = bootstrap({"m": folds}, MEASURES, resamples=100).models["m"]
    assert found.folds["roc_auc"].value is None
    assert found.pooled["roc_auc"].value == 1


@pytest.mark.slow
def test_subjects_cover_the_truth_and_images_do_not():
    """38 patients with 20 images each, whose scores have most in common within a patient.

    A patient's own part of the score (variance 1) is the same in all 20 images; an image's part (variance
    .25) is not. Resampling images takes 760 rows for 760 independent people, though nearly all that varies is
    which 38 patients there are: its interval is several times too narrow and mostly misses.
    """
    shift, of_image, trials = 1.2, 0.5, 400
    truth = {"subject": _normal(shift / sqrt(2 * (1 + of_image**2 / 20)))}
    truth["image"] = _normal(shift / sqrt(2 * (1 + of_image**2)))
    covered = {"subject": 0, "image": 0}
    labels = np.arange(38) % 2
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        patient = shift * labels + rng.normal(size=38)
        scores = 1 / (1 + np.exp(-(patient[:, None] + of_image * rng.normal(size=(38, 20)))))
        logits = np.log(scores / (1 - scores))
        rows = {
            "subject": (labels, 1 / (1 + np.exp(-logits.mean(axis=1)))),
            "image": (labels.repeat(20), scores.ravel()),
        }
        for unit, (outcomes, positive) in rows.items():
            fold = fold_of(0, 0, [f"{i}" for i in range(len(outcomes))], outcomes, positive)
            found = bootstrap({"m": [fold]}, MEASURES, metrics=("roc_auc",), resamples=400, seed=trial)
            entry = found.models["m"].folds["roc_auc"]
            covered[unit] += entry.low <= truth[unit] <= entry.high
    assert 0.90 <= covered["subject"] / trials <= 0.99
    assert covered["image"] / trials < 0.6


def _normal(z):
    return 0.5 * (1 + erf(z / sqrt(2)))
