"""report: JSON without NaN, every figure with its interval or its reason, predictions as one CSV."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, roc_auc_score

from fusionkit.errors import RecipeError
from fusionkit.evaluation.aggregate import UNKNOWN, FoldPredictions, SampleRows
from fusionkit.evaluation.measures import ClassMeasures
from fusionkit.evaluation.metrics import METRICS, label_of
from fusionkit.evaluation.report import LEAKAGE, SIMULATED, build_report, write_predictions_csv
from fusionkit.recipe.schema import EvaluationNode

CLASSES = ("benign", "malignant")
MEASURES = ClassMeasures(CLASSES)
QUICK = EvaluationNode(resamples=100)


def samples_of(subjects, outcomes, positive):
    positive = np.asarray(positive, dtype=float)
    return SampleRows(
        [f"{subject}_{i}" for i, subject in enumerate(subjects)],
        subjects,
        np.asarray(outcomes, dtype=np.int64),
        np.stack([1 - positive, positive], axis=1),
    )


def simulate(n=20, per_subject=3, n_folds=2, repeats=1, shift=1.0, seed=0):
    rng = np.random.default_rng(seed)
    folds = []
    for repeat in range(repeats):
        order = np.random.default_rng(repeat).permutation(n)
        for fold in range(n_folds):
            subjects = np.sort(order[fold::n_folds]).repeat(per_subject)
            labels = subjects % 2
            positive = 1 / (1 + np.exp(-shift * (labels - 0.5) - rng.normal(size=len(subjects))))
            folds.append(
                FoldPredictions(repeat, fold, samples_of([f"p{i}" for i in subjects], labels, positive))
            )
    return folds


def outcomes_of(n=20):
    return {f"p{i}": i % 2 for i in range(n)}


def report_of(**options):
    predictions = {"fused": simulate(), "image": simulate(seed=1, shift=0.5)}
    return build_report(predictions, outcomes_of(), MEASURES, QUICK, **options)


def test_the_report_has_every_figure_and_is_json():
    report = report_of(seed=3)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert list(report["models"]) == ["fused", "image"]
    for model in report["models"].values():
        assert set(model) == {"subject", "pooled", "sample", "n_subjects", "folds"}
        for kind in ("subject", "pooled"):
            assert tuple(model[kind]) == METRICS
            for entry in model[kind].values():
                assert entry["low"] <= entry["value"] <= entry["high"]
        assert tuple(model["sample"]) == METRICS
        assert [(fold["repeat"], fold["fold"]) for fold in model["folds"]] == [(0, 0), (0, 1)]
    assert report["counts"] == {
        "subjects": 20,
        "subjects_by_class": {"benign": 10, "malignant": 10},
        "subjects_without_outcome": 0,
        "samples": 60,
        "samples_by_class": {"benign": 30, "malignant": 30},
        "samples_without_outcome": 0,
    }
    assert (report["threshold"], report["interval"], report["resamples"]) == (0.5, 0.95, 100)
    assert (report["task"], report["classes"]) == ("classification", ["benign", "malignant"])
    assert (report["simulated"], report["unit"], report["aggregation"]) == (
        False,
        "subject",
        "mean_probability",
    )


def test_values_equal_a_loop_over_folds():
    folds = simulate(repeats=2)
    model = build_report({"fused": folds}, outcomes_of(), MEASURES, QUICK)["models"]["fused"]
    by_fold, by_sample = [], []
    for fold in folds:
        subjects = np.array(fold.test.subjects)
        names = sorted(set(subjects))
        means = [fold.test.predictions[subjects == name, 1].mean() for name in names]
        by_fold.append(roc_auc_score([outcomes_of()[name] for name in names], means))
    for repeat in (0, 1):
        rows = [fold.test for fold in folds if fold.repeat == repeat]
        labels = np.concatenate([row.outcomes for row in rows])
        positive = np.concatenate([row.predictions[:, 1] for row in rows])
        by_sample.append((roc_auc_score(labels, positive), accuracy_score(labels, positive >= 0.5)))
    assert model["subject"]["roc_auc"]["value"] == pytest.approx(np.mean(by_fold))
    assert [fold["subject"]["roc_auc"] for fold in model["folds"]] == pytest.approx(by_fold)
    assert model["sample"]["roc_auc"] == pytest.approx(np.mean([auc for auc, _ in by_sample]))
    assert model["sample"]["accuracy"] == pytest.approx(np.mean([accuracy for _, accuracy in by_sample]))


def test_differences_are_fused_minus_each_other_model():
    report = report_of()
    assert [(d["a"], d["b"], d["metric"]) for d in report["differences"]] == [
        ("fused", "image", "roc_auc"),
        ("fused", "image", "accuracy"),
    ]
    models = report["models"]
    for entry in report["differences"]:
        for kind, found in (("subject", entry), ("pooled", entry["pooled"])):
            of_fused, of_image = (models[name][kind][entry["metric"]]["value"] for name in ("fused", "image"))
            assert found["value"] == pytest.approx(of_fused - of_image)
        assert entry["low"] <= entry["value"] <= entry["high"]
        assert entry["n_subjects"] == 20


def test_what_a_reader_must_know_stands_in_the_warnings():
    report = report_of(is_simulated=True, unit="sample")
    assert report["simulated"] is True
    assert report["warnings"] == [
        SIMULATED,
        LEAKAGE,
        "Few subjects were tested (10 benign, 10 malignant): with fewer than 100 of a class, these "
        "figures are uncertain, and a difference that exists can easily be missed.",
    ]


def test_two_hundred_subjects_bring_no_warning():
    folds = simulate(n=200, per_subject=1)
    assert build_report({"fused": folds}, outcomes_of(200), MEASURES, QUICK)["warnings"] == []


def test_null_has_a_reason_everywhere():
    rows = samples_of(["a", "a", "b"], [0, 0, 0], [0.1, 0.2, 0.7])
    report = build_report({"fused": [FoldPredictions(0, 0, rows)]}, {"a": 0, "b": 0}, MEASURES, QUICK)
    model = report["models"]["fused"]
    reason = "not estimable: no malignant subject"
    assert model["subject"]["roc_auc"] == {"value": None, "low": None, "high": None, "reason": reason}
    assert model["pooled"]["sensitivity"]["reason"] == reason
    assert model["folds"][0]["subject"]["roc_auc"] is None
    assert model["folds"][0]["reasons"]["roc_auc"] == reason
    assert model["sample"]["roc_auc"] is None
    assert model["sample_reasons"]["roc_auc"] == "not estimable: no malignant sample"
    assert model["subject"]["accuracy"]["value"] == 0.5
    json.dumps(report, allow_nan=False)


def test_folds_left_out_of_a_mean_are_told():
    folds = [
        FoldPredictions(0, 0, samples_of(["a", "b"], [0, 1], [0.1, 0.7])),
        FoldPredictions(0, 1, samples_of(["c"], [0], [0.1])),
    ]
    report = build_report({"fused": folds, "image": folds}, {"a": 0, "b": 1, "c": 0}, MEASURES, QUICK)
    assert report["warnings"][1:] == [
        f"{label_of(metric)}: 1 of 2 folds are not in the mean (not estimable: no malignant subject): "
        "fused, image."
        for metric in ("roc_auc", "sensitivity", "average_precision")
    ]


def test_unknown_outcomes_are_counted_and_not_scored():
    rows = samples_of(["a", "b", "x"], [0, 1, UNKNOWN], [0.1, 0.7, 0.9])
    report = build_report({"fused": [FoldPredictions(0, 0, rows)]}, {"a": 0, "b": 1}, MEASURES, QUICK)
    assert report["counts"]["subjects_without_outcome"] == 1
    assert report["models"]["fused"]["n_subjects"] == 2
    assert report["models"]["fused"]["sample"]["accuracy"] == 1


def validated(validation):
    test = samples_of(["a", "b"], [0, 1], [0.1, 0.4])
    return {"fused": [FoldPredictions(0, 0, test, validation)]}


BY_VALIDATION = EvaluationNode(resamples=100, threshold="validation")


def test_the_threshold_is_set_on_validation_subjects():
    predictions = validated(samples_of(["v", "w", "w"], [0, 1, 1], [0.1, 0.2, 0.4]))
    report = build_report(predictions, {"a": 0, "b": 1, "v": 0, "w": 1}, MEASURES, BY_VALIDATION)
    model = report["models"]["fused"]
    assert report["threshold"] == "validation"
    assert model["folds"][0]["threshold"] == pytest.approx(0.2)
    assert model["subject"]["accuracy"]["value"] == 1
    assert model["sample"]["accuracy"] == 1
    assert report["counts"]["subjects"] == 2


def test_validation_subjects_of_one_class_leave_the_threshold_and_say_so():
    predictions = validated(samples_of(["v"], [0], [0.1]))
    report = build_report(predictions, {"a": 0, "b": 1, "v": 0}, MEASURES, BY_VALIDATION)
    assert report["models"]["fused"]["folds"][0]["threshold"] == 0.5
    assert report["warnings"][1] == (
        "fused, repeat 0, fold 0: the threshold stays at 0.5 "
        "(not estimable: no malignant validation subject)."
    )


def test_no_validation_subjects_is_the_recipes_mistake():
    with pytest.raises(RecipeError) as caught:
        build_report(validated(None), {"a": 0, "b": 1}, MEASURES, BY_VALIDATION)
    assert str(caught.value) == (
        "evaluation.threshold: repeat 0, fold 0 has no validation subjects to set it on. "
        "Give split.validation a share, or set a number."
    )


def test_three_classes_have_a_report_without_threshold():
    probabilities = np.array([[0.6, 0.2, 0.2], [0.2, 0.6, 0.2], [0.3, 0.3, 0.4], [0.5, 0.3, 0.2]])
    rows = SampleRows(list("1234"), list("abcd"), np.array([0, 1, 2, 0]), probabilities)
    outcomes = {"a": 0, "b": 1, "c": 2, "d": 0}
    classes = ("normal", "benign", "malignant")
    report = build_report(
        {"fused": [FoldPredictions(0, 0, rows)]}, outcomes, ClassMeasures(classes), BY_VALIDATION
    )
    assert report["threshold"] is None
    assert report["models"]["fused"]["folds"][0]["threshold"] is None
    assert report["models"]["fused"]["subject"]["accuracy"]["value"] == 1
    assert report["warnings"][1] == "evaluation.threshold: not used, since there are more than two classes."


def test_predictions_are_one_csv_by_sample_and_by_subject(tmp_path):
    rows = samples_of(["a", "b", "a", "x"], [0, 1, 1, UNKNOWN], [0.1, 0.7, 0.4, 0.5])
    path = tmp_path / "predictions.csv"
    write_predictions_csv(
        path, {"fused": [FoldPredictions(0, 2, rows)]}, {"a": 0, "b": 1}, MEASURES, QUICK, is_simulated=True
    )
    assert path.read_text() == (
        "level,model,repeat,fold,sample,subject,outcome,probability_benign,probability_malignant,predicted,simulated\n"
        "sample,fused,0,2,a_0,a,benign,0.90000000,0.10000000,benign,true\n"
        "sample,fused,0,2,b_1,b,malignant,0.30000000,0.70000000,malignant,true\n"
        "sample,fused,0,2,a_2,a,malignant,0.60000000,0.40000000,benign,true\n"
        "sample,fused,0,2,x_3,x,,0.50000000,0.50000000,malignant,true\n"
        "subject,fused,0,2,,a,benign,0.75000000,0.25000000,benign,true\n"
        "subject,fused,0,2,,b,malignant,0.30000000,0.70000000,malignant,true\n"
        "subject,fused,0,2,,x,,0.50000000,0.50000000,malignant,true\n"
    )
    assert list(tmp_path.iterdir()) == [path]


def test_equal_predictions_give_equal_bytes_whatever_the_ids_hold(tmp_path):
    rows = samples_of(['a,"b"', "ü"], [0, 1], [0.1, 0.7])
    for name in ("1.csv", "2.csv"):
        write_predictions_csv(tmp_path / name, {"fused": [FoldPredictions(0, 0, rows)]}, {}, MEASURES, QUICK)
    assert (tmp_path / "1.csv").read_bytes() == (tmp_path / "2.csv").read_bytes()
    with open(tmp_path / "1.csv", encoding="utf-8", newline="") as file:
        assert [row["subject"] for row in csv.DictReader(file)] == ['a,"b"', "ü"] * 2
