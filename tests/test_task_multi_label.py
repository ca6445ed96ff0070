"""Multi-label: metrics against scikit-learn, cells that are not known left out, a run end to end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score
from task_runs import load, places_in, run_task, tell
from task_toys import truth

from fusionkit import ColumnSpec
from fusionkit.errors import DataError
from fusionkit.evaluate import Seen, evaluate
from fusionkit.evaluation.multi_label import MultiLabelMeasures
from fusionkit.evaluation.summary import report_text
from fusionkit.learned import open_run
from fusionkit.predict import predict, read_rows
from fusionkit.recipe.task_nodes import MultiLabelNode
from fusionkit.tasks.multi_label import MultiLabel

TASK = "{kind: multi_label, columns: [likes, rare]}"
MEASURES = MultiLabelMeasures(("likes", "rare"))


def node(**options):
    return MultiLabelNode(kind="multi_label", columns=("likes", "rare"), **options)


def drawn(seed: int):
    """Returns outcomes (n, 2) of which a fifth is not known, and predictions."""
    rng = np.random.default_rng(seed)
    outcomes = rng.integers(0, 2, (40, 2)).astype(float)
    outcomes[rng.uniform(size=(40, 2)) < 0.2] = np.nan
    return outcomes, rng.uniform(size=(40, 2)).round(1)


def test_each_label_is_scored_where_it_is_known_and_averaged():
    outcomes, said = drawn(0)
    weights = np.random.default_rng(1).integers(1, 4, (2, 40)).astype(float)
    found = MEASURES.weighted(outcomes, said, 0.5, weights, MEASURES.metrics)
    for row in range(2):
        each = []
        for i, name in enumerate(("likes", "rare")):
            known = ~np.isnan(outcomes[:, i])
            times = weights[row][known].astype(int)
            y, p = np.repeat(outcomes[known, i], times), np.repeat(said[known, i], times)
            expected = {
                "roc_auc": roc_auc_score(y, p),
                "average_precision": average_precision_score(y, p),
                "accuracy": ((p >= 0.5) == y).mean(),
                "brier": brier_score_loss(y, p),
            }
            each.append(expected)
            for metric, value in expected.items():
                assert found[f"{metric}_{name}"][row] == pytest.approx(value)
        for metric in each[0]:
            assert found[metric][row] == pytest.approx((each[0][metric] + each[1][metric]) / 2)


@pytest.mark.parametrize(
    ("rare", "reason"),
    [
        ([1, 1], "not estimable: every subject has rare"),
        ([0, 0], "not estimable: every subject lacks rare"),
        ([np.nan, np.nan], "not estimable: rare is known of no subject"),
        ([0, 1], None),
    ],
)
def test_what_cannot_be_estimated_says_why(rare, reason):
    outcomes = np.array([[0, 1], rare], dtype=float).T
    assert MEASURES.why_not("roc_auc", outcomes) == reason
    assert MEASURES.why_not("roc_auc_rare", outcomes) == reason
    assert MEASURES.why_not("roc_auc_likes", outcomes) is None
    found = MEASURES.weighted(outcomes, np.full((2, 2), 0.5), 0.5, np.ones((1, 2)), ["roc_auc"])
    assert np.isnan(found["roc_auc"][0]) == (reason is not None)


def test_the_loss_leaves_out_what_is_not_known():
    task = MultiLabel(node())
    logits = torch.tensor([[0.0, 3.0], [2.0, 0.0]], requires_grad=True)
    targets = torch.tensor([[1.0, torch.nan], [0.0, 1.0]])
    loss = task.loss(logits, targets, torch.tensor([2.0, 1.0]))
    expected = (2 * (np.log(2) + 0) / 2 + (np.log1p(np.exp(2)) + np.log(2)) / 2) / 2
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)
    loss.backward()
    assert float(logits.grad[0, 1]) == 0
    assert torch.isfinite(logits.grad).all()


def test_cells_mean_yes_and_no_as_given_or_as_declared():
    def manifest(**schema):
        return type("M", (), {"schema": schema})()

    assert MultiLabel(node()).parse(manifest(), ["1", None])[0] == pytest.approx([1, np.nan], nan_ok=True)
    binary = ColumnSpec(kind="binary", values=("absent", "present"))
    assert MultiLabel(node()).parse(manifest(rare=binary), ["0", "present"]) == ([0, 1], [])
    given = MultiLabel(node(positive=("y",), negative=("n",)))
    assert given.parse(manifest(rare=binary), ["y", "n"]) == ([1, 0], [])
    assert given.parse(manifest(), ["y", "maybe"])[1] == [
        "rare: neither yes ('y') nor no ('n') ('maybe'). Name it under task.positive or task.negative, "
        "declare the column binary, or blank the cell."
    ]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Returns the folder that a run was in, and what it left; every third `rare` is not known."""
    home = tmp_path_factory.mktemp("labels")
    cells = {"rare": {f"s0.{i}": "" for i in range(0, 160, 3)}, "likes": {"s0.0": ""}}
    return home, run_task(home, TASK, cells=cells)


def test_a_run_comes_near_the_areas_of_the_truth(done):
    known, report = truth(0, 160), done[1].report
    models = report["models"]
    for name, sign in (("likes", 1), ("rare", -1)):
        # of those of whom the label is known
        rows = np.arange(160)[1:] if name == "likes" else np.flatnonzero(np.arange(160) % 3)
        best = roc_auc_score(known[name][rows], sign * known["hazard"][rows])
        assert models["fused"]["subject"][f"roc_auc_{name}"]["value"] == pytest.approx(best, abs=0.06)
    assert models["one"]["subject"]["roc_auc"]["value"] < models["fused"]["subject"]["roc_auc"]["value"]
    assert report["counts"]["subjects"] == 159
    assert report["counts"]["subjects_by_class"]["likes"] == int(known["likes"][1:].sum())
    assert "AUC" in report_text(report)
    assert [entry["metric"] for entry in report["differences"][:2]] == ["roc_auc", "average_precision"]


def test_predictions_have_a_column_per_label_and_blanks_where_it_is_not_known(done):
    lines = (done[1].folder / "predictions.csv").read_text().splitlines()
    assert lines[0] == (
        "level,model,repeat,fold,sample,subject,outcome_likes,outcome_rare,probability_likes,"
        "probability_rare,simulated"
    )
    [line] = [line for line in lines if line.startswith("subject,fused,") and ",s0.3," in line]
    assert line.split(",")[7] == ""


def test_predict_and_evaluate_answer_with_probabilities(done):
    home, result = done
    (home / "rows.csv").write_text("a,b,c\n-2,0,-2\n2,0,2\n")
    registry = load(TASK)[1]
    learned = open_run(result.folder, registry, home)
    answers = predict(learned, read_rows(learned, home / "rows.csv", None, None), places_in(home), tell)
    (low, high) = (row.predictions for row in answers.rows)
    assert low[0] < 0.1 < 0.9 < high[0]
    assert low[1] > 0.7 > 0.1 > high[1]
    head = "sample,probability_likes,probability_rare,model,missing,simulated"
    assert answers.to_csv().splitlines()[0] == head
    learned = open_run(result.folder, registry, home, ["source.seed=4"])
    other = evaluate(learned, registry, places_in(home), tell, Seen(), home / "evaluations" / "other")
    known = truth(4, 160)
    best = roc_auc_score(known["likes"], known["hazard"])
    found = other.report["models"]["fused"]["subject"]["roc_auc_likes"]["value"]
    assert found == pytest.approx(best, abs=0.04)


def test_cells_that_are_neither_are_all_named(tmp_path):
    with pytest.raises(DataError) as caught:
        run_task(tmp_path, TASK, cells={"likes": {"s0.1": "2"}, "rare": {"s0.1": "no", "s0.2": "no"}})
    advice = "Name it under task.positive or task.negative, declare the column binary, or blank the cell."
    assert list(caught.value.problems) == [
        f"2 samples (s0.1/0, s0.1/1): likes: neither yes ('1') nor no ('0') ('2'). {advice}",
        f"4 samples (s0.1/0, s0.1/1, s0.2/0, s0.2/1): rare: neither yes ('1') nor no ('0') ('no'). {advice}",
    ]
