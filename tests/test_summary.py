"""summary: the report in plain words, within the terminal's width."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from test_report import MEASURES, QUICK, outcomes_of, simulate
from test_task_horizons import draw, slow_scores

from fusionkit.evaluation.aggregate import FoldPredictions
from fusionkit.evaluation.report import LEAKAGE, SIMULATED, build_report
from fusionkit.evaluation.summary import report_text
from fusionkit.evaluation.survival import SurvivalMeasures


@pytest.fixture(scope="module")
def report():
    predictions = {"fused": simulate(), "image": simulate(seed=1), "image_pretrained": simulate(seed=2)}
    return build_report(predictions, outcomes_of(), MEASURES, QUICK)


def with_difference(report, **values):
    changed = copy.deepcopy(report)
    changed["differences"] = [changed["differences"][0] | values]
    return report_text(changed, 200)


@pytest.mark.parametrize("width", [50, 80, 120])
def test_no_line_is_wider_than_the_terminal(report, width):
    branded = report | {"simulated": True, "unit": "sample"}
    assert max(map(len, report_text(branded, width).splitlines())) <= width
    assert report_text(branded, width).isascii()


def test_the_table_holds_values_over_their_intervals(report):
    lines = report_text(report).splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("model"))
    assert lines[head].split() == ["model", "AUC", "accuracy", "sensitivity", "specificity"]
    entries = [
        report["models"]["fused"]["subject"][m] for m in ("roc_auc", "accuracy", "sensitivity", "specificity")
    ]
    assert lines[head + 1].split() == ["fused", *(f"{e['value']:.3f}" for e in entries)]
    assert lines[head + 2].split() == [
        "20",
        "subjects",
        *(f"{e['low']:.2f}-{e['high']:.2f}" for e in entries),
    ]
    assert "Tested: 20 subjects (10 benign, 10 malignant) with 60 samples." in lines


def test_simulated_data_are_named_first_and_leakage_next(report):
    assert report_text(report).startswith("Tested: ")
    simulated = report | {"simulated": True, "unit": "sample", "warnings": [SIMULATED, LEAKAGE]}
    lines = report_text(simulated, 200).splitlines()
    assert lines[:2] == [SIMULATED, LEAKAGE]
    assert lines.count(SIMULATED) == 1


def test_a_difference_above_zero_adds(report):
    text = with_difference(report, value=0.0612, low=0.02, high=0.104)
    assert "Fusion adds 0.061 AUC over the image alone (95 % interval 0.020 to 0.104; 20 subjects)." in text


def test_a_difference_below_zero_loses(report):
    text = with_difference(report, value=-0.05, low=-0.09, high=-0.01)
    assert (
        "Fusion loses 0.050 AUC against the image alone (95 % interval -0.090 to -0.010; 20 subjects)."
        in text
    )


@pytest.mark.parametrize(("low", "high"), [(-0.01, 0.05), (0.0, 0.05), (0.0, 0.0)])
def test_an_interval_that_holds_zero_shows_no_difference(report, low, high):
    text = with_difference(report, value=0.02, low=low, high=high)
    bounds = f"95 % interval {low:.3f} to {high:.3f}; 20 subjects"
    assert f"Fusion is not shown to differ from the image alone (difference in AUC 0.020, {bounds})." in text


def test_a_bound_just_above_zero_is_not_written_as_zero(report):
    assert "interval 0.0004 to 0.100;" in with_difference(report, value=0.05, low=0.0004, high=0.1)


def test_thresholds_set_on_validation_subjects_are_told_by_model(report):
    plain = copy.deepcopy(report)
    assert "A subject is called malignant from probability 0.5 on." in report_text(plain, 200)
    plain["threshold"] = "validation"
    plain["models"] = {name: plain["models"][name] for name in ("fused", "image")}
    plain["differences"] = []
    folds = plain["models"]["fused"]["folds"]
    for fold, threshold in zip(folds, (0.625, 0.25), strict=True):
        fold["threshold"] = threshold
    assert (
        "A subject is called malignant from a probability on that was set on validation subjects of each "
        "fold (fused 0.250 to 0.625, image 0.500)." in report_text(plain, 300)
    )


def test_what_is_not_estimable_says_why():
    folds = [FoldPredictions(0, 0, simulate(n=4, n_folds=1)[0].test)]
    report = build_report({"fused": folds, "image": folds}, dict.fromkeys(outcomes_of(4), 0), MEASURES, QUICK)
    text = report_text(report, 200)
    assert "fused: AUC not estimable: no malignant subject." in text
    assert (
        "Fusion against the image alone: the difference in AUC is not estimable: no malignant subject."
        in text
    )


def test_an_interval_without_width_is_said_to_be_no_certainty(report):
    plain = copy.deepcopy(report)
    for model in plain["models"].values():
        for found in model["subject"].values():
            found |= {"low": 0.1, "high": 0.9}
    assert "without width" not in report_text(plain, 200)
    plain["models"]["image"]["subject"]["roc_auc"] |= {"value": 1.0, "low": 1.0, "high": 1.0}
    assert (
        "Every resample gives the same value of image AUC: an interval without width is no certainty, other "
        "subjects would differ." in report_text(plain, 200)
    )


def test_small_samples_are_warned_of(report):
    assert "Few subjects were tested (10 benign, 10 malignant): with fewer than 100" in report_text(
        report, 200
    )


def test_what_a_brier_score_by_a_time_is_read_against_is_the_best_that_one_probability_for_all_gets():
    _, times, is_event, _ = draw(3, 60)
    outcomes = np.stack([times, is_event], axis=1)
    at_4, beyond = SurvivalMeasures((4.0, 9.0)).by_horizon(outcomes)
    scores = [slow_scores(times, is_event, [p] * 60, np.ones(60), 4.0)[0] for p in np.linspace(0, 1, 101)]
    assert at_4["brier_of_one_probability"] == pytest.approx(min(scores), abs=1e-4)
    assert at_4["brier_of_one_probability"] <= min(scores)
    n_lost = int(((times < 4) & (is_event == 0)).sum())
    assert 0 < n_lost < 60
    assert (at_4["horizon"], at_4["subjects"], at_4["known"]) == (4.0, 60, 60 - n_lost)
    assert beyond["brier_of_one_probability"] is None  # nobody is followed so long
