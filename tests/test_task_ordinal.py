"""Ordinal: the likelihood of ranks, metrics against scikit-learn, a run end to end."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, mean_absolute_error
from task_runs import load, places_in, run_task, tell
from task_toys import CLASSES, truth

from fusionkit.errors import RecipeError
from fusionkit.evaluate import Seen, evaluate
from fusionkit.evaluation.ordinal import OrdinalMeasures
from fusionkit.evaluation.summary import report_text
from fusionkit.learned import open_run
from fusionkit.predict import predict, read_rows
from fusionkit.tasks.ordinal import Ordinal

TASK = "{kind: ordinal}"
MEASURES = OrdinalMeasures(CLASSES)


def test_the_link_multiplies_conditional_probabilities():
    logits = torch.tensor([[math.log(3), math.log(1 / 4)]])
    # above low: 3/4; of these above middle: 1/5
    torch.testing.assert_close(Ordinal(CLASSES).link(logits), torch.tensor([[0.25, 0.6, 0.15]]))


def test_the_loss_is_minus_the_log_of_what_the_link_gives():
    task = Ordinal("abcd")
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets, weights = torch.tensor([0, 1, 2, 3, 3, 0, 1, 2]), torch.arange(1.0, 9, dtype=torch.float64)
    said = task.link(logits)[torch.arange(8), targets]
    expected = -(said.log() * weights).mean()
    torch.testing.assert_close(task.loss(logits, targets, weights), expected)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda some: task.loss(some, targets, weights), (logits,))


@pytest.mark.parametrize("scale", [1, 1000])
def test_probabilities_add_up_to_one(scale):
    logits = scale * torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(Ordinal("abcde").link(logits).sum(-1), torch.ones(5, 2))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000))
def test_metrics_under_weights_are_those_of_copies(seed):
    rng = np.random.default_rng(seed)
    ranks, said = rng.integers(0, 3, 12), rng.dirichlet(np.ones(3), 12)
    ranks[:2] = 0, 2
    weights = rng.integers(1, 3, (2, 12)).astype(float)
    found = MEASURES.weighted(ranks, said, 0.5, weights, MEASURES.metrics)
    called = [next(k for k in range(3) if row[: k + 1].sum() >= 0.5) for row in said]
    expected = said @ np.arange(3)
    for row, times in enumerate(weights.astype(int)):
        y, p = np.repeat(ranks, times), np.repeat(called, times)
        if len(set(y)) > 1:
            kappa = cohen_kappa_score(y, p, weights="quadratic", labels=range(3))
            assert found["quadratic_kappa"][row] == pytest.approx(kappa, abs=1e-9)
        assert found["rank_error"][row] == pytest.approx(mean_absolute_error(y, p))
        assert found["accuracy"][row] == pytest.approx((y == p).mean())
        scores = np.repeat(expected, times)
        pairs = [(i, j) for i, j in itertools.permutations(range(len(y)), 2) if y[i] < y[j]]
        won = np.mean([(scores[i] < scores[j]) + 0.5 * (scores[i] == scores[j]) for i, j in pairs])
        assert found["concordance"][row] == pytest.approx(won)


def test_what_cannot_be_estimated_says_why():
    ranks = np.array([1, 1])
    assert MEASURES.why_not("quadratic_kappa", ranks) == "not estimable: only middle subjects"
    assert MEASURES.why_not("rank_error", ranks) is None
    assert MEASURES.why_not("accuracy", ranks[:0]) == "not estimable: no subject with a known outcome"
    said = np.array([[0.2, 0.5, 0.3], [0.7, 0.2, 0.1]])
    found = MEASURES.weighted(ranks, said, 0.5, np.ones((1, 2)), ["quadratic_kappa", "concordance"])
    assert np.isnan([value[0] for value in found.values()]).all()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Returns the folder that a run was in, and what it left."""
    home = tmp_path_factory.mktemp("ordinal")
    return home, run_task(home, TASK, "stages.fuse.class_weights=balanced")


def best_of(seed: int) -> float:
    """Returns how well the true number orders the true ranks."""
    known = truth(seed, 160)
    pairs = [(i, j) for i, j in itertools.permutations(range(160), 2) if known["rank"][i] < known["rank"][j]]
    return float(np.mean([known["hazard"][i] < known["hazard"][j] for i, j in pairs]))


def test_a_run_orders_ranks_nearly_as_the_truth_does(done):
    report = done[1].report
    models = report["models"]
    assert models["fused"]["subject"]["concordance"]["value"] == pytest.approx(best_of(0), abs=0.04)
    assert models["fused"]["subject"]["quadratic_kappa"]["value"] > 0.5
    assert (
        models["one"]["subject"]["concordance"]["value"] < models["fused"]["subject"]["concordance"]["value"]
    )
    counts = [int((truth(0, 160)["rank"] == code).sum()) for code in range(3)]
    assert report["counts"]["subjects_by_class"] == dict(zip(CLASSES, counts, strict=True))
    assert (report["task"], report["classes"]) == ("ordinal", list(CLASSES))
    text = report_text(report)
    assert "kappa" in text
    assert "rank error" in text


def test_predict_calls_the_median_rank_and_evaluate_judges_it(done):
    home, result = done
    (home / "rows.csv").write_text("a,b,c\n-2,0,-2\n0,0,0\n2,0,2\n")
    registry = load(TASK)[1]
    learned = open_run(result.folder, registry, home)
    answers = predict(learned, read_rows(learned, home / "rows.csv", None, None), places_in(home), tell)
    assert [row.predicted for row in answers.rows] == list(CLASSES)
    head = "sample,probability_low,probability_middle,probability_high,predicted,model,missing,simulated"
    assert answers.to_csv().splitlines()[0] == head
    learned = open_run(result.folder, registry, home, ["source.seed=6"])
    other = evaluate(learned, registry, places_in(home), tell, Seen(), home / "evaluations" / "other")
    found = other.report["models"]["fused"]["subject"]["concordance"]["value"]
    assert found == pytest.approx(best_of(6), abs=0.04)


def test_ranks_are_three_or_more():
    with pytest.raises(RecipeError) as caught:
        load(TASK, "source.has_classes=false")
    assert list(caught.value.problems) == [
        "override 'source.has_classes=false': task: ordinal needs 3 classes or more, and the source names 0. "
        "Name them in the source, or set another task.kind."
    ]
