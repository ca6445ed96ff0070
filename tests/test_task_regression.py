"""Regression: metrics against scikit-learn and scipy; scaling by training rows; a run end to end."""

from __future__ import annotations

import copy
import csv
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from task_runs import load, places_in, run_task, tell
from task_toys import truth

from fusionkit.errors import DataError, IntegrityError, RecipeError
from fusionkit.evaluate import Seen, evaluate
from fusionkit.evaluation.aggregate import FoldPredictions, SampleRows, aggregate_subjects, subject_numbers
from fusionkit.evaluation.regression import RegressionMeasures
from fusionkit.evaluation.report import build_report
from fusionkit.evaluation.summary import report_text
from fusionkit.learned import open_run
from fusionkit.predict import Answers, Prediction, predict, read_rows
from fusionkit.prepare import prepare
from fusionkit.recipe.task_nodes import RegressionNode
from fusionkit.tasks.regression import Regression
from fusionkit.training.stages import plan_steps
from fusionkit.training.supervised import finish

TASK = "{kind: regression, column: score}"
MEASURES = RegressionMeasures()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(2, 15), far=st.sampled_from([0.0, 1e6]))
def test_metrics_under_weights_are_those_of_copies(seed, n, far):
    rng = np.random.default_rng(seed)
    known, said = rng.integers(0, 6, (2, n)) + far
    known[:2] = far, far + 7
    weights = rng.integers(1, 4, (3, n)).astype(float)
    found = MEASURES.weighted(known[:, None], said[:, None], 0.5, weights, MEASURES.metrics)
    for row, times in enumerate(weights.astype(int)):
        y, p = np.repeat(known, times), np.repeat(said, times)
        assert found["r2"][row] == pytest.approx(r2_score(y, p), abs=1e-6)
        assert found["mae"][row] == pytest.approx(mean_absolute_error(y, p))
        assert found["rmse"][row] == pytest.approx(root_mean_squared_error(y, p))
        expected = spearmanr(y, p).statistic if len(set(p)) > 1 else np.nan
        assert found["spearman"][row] == pytest.approx(expected, nan_ok=True)


def test_what_cannot_be_estimated_says_why():
    same = np.full((3, 1), 2.0)
    assert MEASURES.why_not("r2", same) == "not estimable: every subject has the same outcome"
    assert MEASURES.why_not("mae", same) is None
    assert MEASURES.why_not("mae", same[:0], "sample") == "not estimable: no sample with a known outcome"
    found = MEASURES.weighted(same, same, 0.5, np.ones((1, 3)), MEASURES.metrics)
    assert {name: float(value[0]) for name, value in found.items()} == pytest.approx(
        {"r2": np.nan, "mae": 0, "rmse": 0, "spearman": np.nan}, nan_ok=True
    )


def test_a_correlation_with_one_prediction_for_all_says_so(done):
    outcomes, same = np.arange(6.0)[:, None], np.ones((6, 1))
    names = list("abcdef")
    folds = [FoldPredictions(0, 0, SampleRows(names, names, outcomes, same))]
    known = {name: (float(i),) for i, name in enumerate(names)}
    report = build_report({"one": folds}, known, MEASURES, load(TASK)[0].recipe.evaluation)
    model = report["models"]["one"]
    reason = "not estimable: every prediction is the same"
    assert model["subject"]["spearman"] == {"value": None, "low": None, "high": None, "reason": reason}
    assert model["pooled"]["spearman"]["reason"] == reason
    assert model["sample_reasons"] == model["folds"][0]["reasons"] == {"spearman": reason}


def test_the_loss_is_of_training_standard_deviations_and_finish_undoes_it():
    task = Regression(RegressionNode(kind="regression", column="score")).fitted(np.array([[10.0], [30.0]]))
    logits, targets = torch.tensor([[0.0], [1.0]]), torch.tensor([[40.0], [30.0]])
    # mean 20, sd 10: the errors are 2 and 0
    assert float(task.loss(logits, targets, torch.tensor([3.0, 1.0]))) == pytest.approx(3 * 4 / 2)
    back = task.finish(logits.numpy()[None], task.state(lambda: logits, lambda: (logits, logits)))
    assert back.tolist() == [[[20.0], [30.0]]]


@pytest.mark.parametrize("value", [3.0, 0.1])  # the mean of many 0.1 is rounded
def test_an_outcome_that_is_the_same_in_training_is_an_error(value):
    task = Regression(RegressionNode(kind="regression", column="score"))
    with pytest.raises(DataError) as caught:
        task.fitted(np.full((30, 1), value))
    assert list(caught.value.problems) == [
        f"task: the outcome is the same in all training rows (score is {value:g}). "
        "Use more data or fewer folds."
    ]


def test_the_loss_sees_the_digits_of_large_numbers():
    known = 1e9 + np.array([[0.0], [1.0], [2.0]])
    task = Regression(RegressionNode(kind="regression", column="score")).fitted(known)
    right = torch.tensor([[-1.0], [0.0], [1.0]]) / np.sqrt(2 / 3)
    assert float(task.loss(right, torch.from_numpy(known), torch.ones(3))) == pytest.approx(0, abs=1e-9)
    back = task.finish(right.numpy()[None], task.state(lambda: right, lambda: (right, right)))
    assert back.dtype == np.float64
    assert back[0] - 1e9 == pytest.approx(known - 1e9, abs=1e-6)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Returns the folder that a run was in, and what it left."""
    home = tmp_path_factory.mktemp("regression")
    return home, run_task(home, TASK, "evaluation.missing={two: [0.5]}")


def test_a_run_comes_near_what_can_be_reached(done):
    known = truth(0, 160)
    ceiling = r2_score(known["score"], 500 + 100 * known["hazard"])
    models = done[1].report["models"]
    assert models["fused"]["subject"]["r2"]["value"] == pytest.approx(ceiling, abs=0.05)
    assert models["fused"]["subject"]["rmse"]["value"] == pytest.approx(75, rel=0.15)
    alone = r2_score(known["score"], 500 + 100 * (known["a"] + 0.5 * known["b"]))
    assert models["one"]["subject"]["r2"]["value"] == pytest.approx(alone, abs=0.1)
    less = models["fused_missing_two_0.5"]["subject"]["r2"]["value"]
    assert less < models["fused"]["subject"]["r2"]["value"] - 0.1


def test_a_large_mean_changes_nothing(done, tmp_path):
    known = truth(0, 160)["score"]
    cells = {"score": {f"s0.{i}": str(1e9 + value) for i, value in enumerate(known)}}
    shifted = run_task(tmp_path, TASK, cells=cells).report["models"]["fused"]["subject"]
    plain = done[1].report["models"]["fused"]["subject"]
    assert shifted["r2"]["value"] == pytest.approx(plain["r2"]["value"], abs=1e-4)
    assert shifted["mae"]["value"] == pytest.approx(plain["mae"]["value"], rel=1e-4)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_what_a_sum_leaves_over_is_rounded_on_every_scale(scale):
    parts = np.array([[0.1], [0.2], [0.3], [0.3], [0.2], [0.1], [0.7], [0.7], [0.7]]) * scale
    owners = [name for name in "pqr" for _ in range(3)]
    rows = SampleRows(list("abcdefghi"), owners, parts, parts)
    found = aggregate_subjects(rows, {}).predictions[:, 0]
    assert found[0] == found[1] == pytest.approx(0.2 * scale, rel=1e-12)
    assert found[2] == pytest.approx(0.7 * scale, rel=1e-12)


def test_the_figures_of_a_report_are_those_of_its_predictions(done):
    with (done[1].folder / "predictions.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if (row["level"], row["model"]) == ("subject", "fused")]
    each = []
    for fold in ("0", "1"):
        of_fold = [row for row in rows if row["fold"] == fold]
        known, said = ([float(row[name]) for row in of_fold] for name in ("outcome", "predicted"))
        each.append(mean_absolute_error(known, said))
    found = done[1].report["models"]["fused"]["subject"]["mae"]["value"]
    assert found == pytest.approx(np.mean(each), rel=1e-12)


def test_predictions_are_written_with_all_their_digits():
    outcomes, said = np.array([[1234567.891], [np.nan], [3.0]]), np.array([[1e-12], [0.1], [-2e30]])
    assert MEASURES.cells(outcomes, said, 0.5) == [
        ["1234567.891", "1e-12"],
        ["", "0.1"],
        ["3", "-2e+30"],
    ]
    answers = Answers(
        (), False, [Prediction("r", (1e-12,), None, "one", "")], (), ("predicted",), "regression"
    )
    assert answers.to_csv().splitlines()[1] == "r,1e-12,one,,false"
    labels = replace(answers, columns=("probability_y",))
    assert labels.to_csv().splitlines()[1] == "r,0.00000000,one,,false"


def test_differences_and_summary_are_of_the_explained_variance(done):
    report = done[1].report
    assert [entry["metric"] for entry in report["differences"] if entry["b"] == "one"] == ["r2", "mae"]
    text = report_text(report)
    assert "Tested: 160 subjects (160 measured) with 320 samples." in text
    assert "Fusion adds" in text
    assert " R2 over the one alone" in text
    assert "R2 with a share of two blanked" in text


@pytest.mark.parametrize(("scale", "mae"), [(1e9, "7.5e+10"), (1e-9, "7.5e-08"), (1.0, "75")])
def test_the_table_holds_errors_of_any_size_apart(done, scale, mae):
    report = copy.deepcopy(done[1].report)
    for model in report["models"].values():
        for metric in ("mae", "rmse"):
            known = {"value": 75.0 * scale, "low": 70.0 * scale, "high": 80.0 * scale}
            model["subject"][metric] = known
            model["sample"][metric] = 75.0 * scale
    lines = report_text(report, 200).splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("model"))
    value, ends = ([cell for cell in re.split(" {2,}", line) if cell] for line in lines[head + 1 : head + 3])
    assert value[:1] + value[2:4] == ["fused", mae, mae]
    both = mae.replace("7.5", "7"), mae.replace("7.5", "8")
    assert ends[2:4] == ([f"{both[0]} to {both[1]}"] * 2 if scale != 1 else ["70-80"] * 2)
    assert max(map(len, report_text(report, 80).splitlines())) <= 80


def test_predict_and_evaluate_speak_on_the_outcomes_scale(done):
    home, result = done
    (home / "rows.csv").write_text("a,b,c\n0,0,0\n1,1,1\n")
    registry = load(TASK)[1]
    learned = open_run(result.folder, registry, home)
    answers = predict(learned, read_rows(learned, home / "rows.csv", None, None), places_in(home), tell)
    assert [row.predictions[0] for row in answers.rows] == pytest.approx([500, 750], abs=40)
    assert answers.to_csv().splitlines()[0] == "sample,predicted,model,missing,simulated"
    learned = open_run(result.folder, registry, home, ["source.seed=3"])
    other = evaluate(learned, registry, places_in(home), tell, Seen(), home / "evaluations" / "other")
    known = truth(3, 160)
    ceiling = r2_score(known["score"], 500 + 100 * known["hazard"])
    assert other.report["models"]["fused"]["subject"]["r2"]["value"] == pytest.approx(ceiling, abs=0.05)


def test_the_scale_is_that_of_the_training_rows_alone(done):
    loaded, _ = load(TASK)
    prepared = prepare(loaded, places_in(done[0]), tell)
    fold = prepared.folds[0]
    step = plan_steps(prepared.main, fold, 0).steps[-1]
    tensors = prepared.main.store.load(step.address).tensors
    known = prepared.main.targets(fold.train)
    assert float(tensors["task.mean"]) == pytest.approx(known.mean())
    assert float(tensors["task.sd"]) == pytest.approx(known.std())


def test_samples_of_one_subject_agree():
    with pytest.raises(DataError) as caught:
        subject_numbers(["p", "p", "q", "p"], np.array([[1.0], [2.5], [1], [np.nan]]))
    assert list(caught.value.problems) == [
        "outcome: samples of one subject have different ones (p: 1 or 2.5 or unknown). "
        "Give each subject one outcome."
    ]
    assert subject_numbers(["p", "p"], np.array([[np.nan], [2.5]])) == {"p": (2.5,)}


def test_cells_that_are_no_numbers_are_one_sentence_with_their_number(tmp_path):
    cells = {"score": {f"s0.{i}": "high" for i in range(12)} | {"s0.20": "", "s0.21": "1e999"}}
    with pytest.raises(DataError) as caught:
        run_task(tmp_path, TASK, cells=cells)
    assert caught.value.problems == (
        "sample s0.0/0 (subject s0.0): score: not a number ('high'). Mend the cell, or blank it. "
        "Alike: 25 more rows (s0.0/1, s0.1/0, s0.1/1, ...).",
    )


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (
            ["head={use: decision}"],
            "head: decision cannot do this task (regression). It does: classification.",
        ),
        (["head={use: sklearn}"], "head: sklearn cannot do this task (regression). It does: classification."),
        (
            ["stages.fuse.class_weights=balanced"],
            "is for classes, and the task is regression. Set null here.",
        ),
        (["stages.fuse.sampling=balanced"], "is for classes, and the task is regression. Set null here."),
        (["evaluation.samples=vote"], "is for classes (vote), and the task is regression. Leave it out."),
        (["evaluation.views=vote"], "is for classes (vote), and the task is regression. Leave it out."),
        (["task.column=a"], "an outcome cannot be an input ('a' is task.column)."),
    ],
)
def test_what_the_task_cannot_do_is_said_when_the_recipe_is_loaded(overrides, problem):
    with pytest.raises(RecipeError) as caught:
        load(TASK, *overrides)
    assert any(problem in text for text in caught.value.problems), caught.value.problems


@pytest.mark.parametrize("text", ["1e200", "-1e101", "1e-200"])
def test_a_number_of_which_no_square_can_be_told_is_refused(text, tmp_path):
    with pytest.raises(DataError) as caught:
        run_task(tmp_path, TASK, cells={"score": {"s0.0": text}})
    assert caught.value.problems[0] == (
        f"sample s0.0/0 (subject s0.0): score: its size is not from 1e-100 to 1e+100 ('{text}'). "
        "Mend the cell, or blank it."
    )


def test_a_column_of_the_outcome_that_is_named_as_input_is_one_mistake():
    with pytest.raises(RecipeError) as caught:
        load(TASK, "modalities.two.columns=[score]")
    assert [text.split(": ", 1)[1] for text in caught.value.problems] == [
        "modalities.two.columns[0]: an outcome cannot be an input ('score' is task.column)."
    ]


def test_columns_of_the_outcome_are_left_out_by_default():
    loaded, _ = load(
        "{kind: regression, column: a}", "modalities.one.columns=[b]", "modalities.two.columns=null"
    )
    assert loaded.columns == {"one": ("b",), "two": ("b", "c")}


def test_what_was_learned_without_its_scale_gives_no_answer(tmp_path):
    """Numbers that are standardised would look like outcomes."""
    run_task(tmp_path, TASK, "evaluation.modalities_alone=false")
    loaded, _ = load(TASK)
    prepared = prepare(loaded, places_in(tmp_path), tell)
    experiment = prepared.main
    head = plan_steps(experiment, prepared.folds[0], 0).origins["head"]
    artefact = experiment.artefact(head.address)
    bare = replace(artefact, tensors={n: t for n, t in artefact.tensors.items() if not n.startswith("task.")})
    experiment.shared.artefacts = lambda address: bare
    with pytest.raises(IntegrityError) as caught:
        finish(experiment, np.zeros((1, 1, 1), dtype=np.float32), head)
    assert str(caught.value) == (
        f"artefact {head.address[:12]}: does not say on which scale of the outcome it learned. Run the "
        "recipe again with another --store."
    )
