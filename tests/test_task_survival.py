"""Survival: Cox's loss and Harrell's concordance against slow oracles; a run end to end."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from task_runs import load, places_in, run_task, tell
from task_toys import truth

from fusionkit.errors import DataError
from fusionkit.evaluate import Seen, evaluate
from fusionkit.evaluation.summary import report_text
from fusionkit.evaluation.survival import SurvivalMeasures, concordance
from fusionkit.learned import open_run
from fusionkit.predict import predict, read_rows
from fusionkit.prepare import examine, prepare
from fusionkit.recipe.task_nodes import SurvivalNode
from fusionkit.tasks.survival import Survival, cox_loss
from fusionkit.training.stages import plan_steps
from fusionkit.training.supervised import predict_logits

TASK = "{kind: survival, time: months, event: died}"


def slow_cox(hazards, times, events, weights) -> float:
    """Efron's partial likelihood, as its definition says it."""
    total = 0.0
    for time in sorted(set(times)):
        tied = [i for i in range(len(times)) if times[i] == time and events[i]]
        if not tied:
            continue
        at_risk = sum(weights[j] * math.exp(hazards[j]) for j in range(len(times)) if times[j] >= time)
        dying = sum(weights[i] * math.exp(hazards[i]) for i in tied)
        mean_weight = sum(weights[i] for i in tied) / len(tied)
        total += sum(weights[i] * hazards[i] for i in tied)
        total -= sum(mean_weight * math.log(at_risk - rank / len(tied) * dying) for rank in range(len(tied)))
    return -total


def slow_concordance(times, events, hazards, weights) -> float:
    """Every pair of subjects, one by one."""
    won = compared = 0.0
    for i in range(len(times)):
        for j in range(len(times)):
            if events[i] and (times[i] < times[j] or (times[i] == times[j] and not events[j])):
                pair = weights[i] * weights[j]
                compared += pair
                won += pair * (1.0 if hazards[i] > hazards[j] else 0.5 if hazards[i] == hazards[j] else 0.0)
    return won / compared if compared else math.nan


def draw(seed: int, n: int = 30):
    """Returns hazards, times with ties, events, weights, each (n,)."""
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=n),
        rng.integers(0, 8, n).astype(float),
        rng.integers(0, 2, n),
        rng.uniform(0.5, 2, n),
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_loss_is_efrons_with_ties_and_weights(seed):
    hazards, times, events, weights = draw(seed)
    found = cox_loss(
        *(torch.tensor(values, dtype=torch.float64) for values in (hazards, times, events, weights))
    )
    assert float(found) == pytest.approx(slow_cox(hazards, times, events, weights), rel=1e-9)


def test_the_loss_has_the_gradient_that_differences_give():
    hazards, times, events, weights = (torch.tensor(values, dtype=torch.float64) for values in draw(7, 12))
    hazards.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda given: cox_loss(given, times, events.double(), weights), (hazards,)
    )


def test_the_loss_of_the_task_is_the_mean_over_rows_and_nothing_without_an_event():
    task = Survival(SurvivalNode(kind="survival", time="t", event="e"))
    logits = torch.tensor([[1.0], [0.0], [2.0]], requires_grad=True)
    targets, ones = torch.tensor([[1.0, 1], [2, 1], [3, 0]]), torch.ones(3)
    expected = slow_cox([1.0, 0, 2], [1, 2, 3], [1, 1, 0], [1, 1, 1]) / 3
    assert float(task.loss(logits, targets, ones).detach()) == pytest.approx(expected, rel=1e-6)
    nothing = task.loss(logits, targets * torch.tensor([1, 0]), ones)
    nothing.backward()
    assert (float(nothing.detach()), float(logits.grad.abs().sum())) == (0, 0)


def test_times_that_float32_would_tie_are_no_ties():
    times = torch.tensor([2.0**24, 2.0**24 + 1, 2.0**24 + 2], dtype=torch.float64)
    targets = torch.stack([times, torch.ones(3, dtype=torch.float64)], 1)
    logits = torch.tensor([[1.0], [0.0], [2.0]])
    task = Survival(SurvivalNode(kind="survival", time="t", event="e"))
    expected = slow_cox([1.0, 0, 2], [1, 2, 3], [1, 1, 1], [1, 1, 1]) / 3
    assert float(task.loss(logits, targets, torch.ones(3))) == pytest.approx(expected, rel=1e-6)


def test_hazards_that_overflow_leave_a_finite_loss_and_gradient():
    hazards = torch.tensor([900.0, -900.0, 0.0], requires_grad=True)
    loss = cox_loss(hazards, torch.tensor([1.0, 2, 2]), torch.ones(3), torch.ones(3))
    loss.backward()
    # the first dies first, surely; then two tie: log(1) - (-900), and half of who is at risk is left
    assert float(loss.detach()) == pytest.approx(900 + math.log(0.5), rel=1e-6)
    assert torch.isfinite(hazards.grad).all()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(0, 12))
def test_the_concordance_is_that_of_all_pairs_under_weights(seed, n):
    hazards, times, events, _ = draw(seed, n)
    hazards = hazards.round(0)
    weights = np.random.default_rng(seed).integers(0, 4, (3, n)).astype(float)
    found = concordance(times, events > 0, hazards, weights)
    expected = [slow_concordance(times, events, hazards, row) for row in weights]
    assert found == pytest.approx(expected, nan_ok=True)


def test_blocks_of_pairs_change_nothing(monkeypatch):
    hazards, times, events, weights = draw(3, 50)
    whole = concordance(times, events > 0, hazards, weights[None])
    monkeypatch.setattr("fusionkit.evaluation.survival._PAIRS_AT_ONCE", 120)
    assert concordance(times, events > 0, hazards, weights[None]) == pytest.approx(whole, rel=1e-12)
    assert whole == pytest.approx([slow_concordance(times, events, hazards, weights)], rel=1e-12)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), block=st.integers(1, 9))
def test_blocks_of_subjects_change_nothing(seed, block):
    hazards, times, events, weights = draw(seed, 40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fusionkit.evaluation.survival._BLOCK", block)
        found = concordance(times, events > 0, hazards.round(1), np.stack([weights, weights**2]))
    expected = [slow_concordance(times, events, hazards.round(1), each) for each in (weights, weights**2)]
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("outcomes", "reason"),
    [
        ([], "not estimable: no subject with a known outcome"),
        ([[3, 0], [4, 0]], "not estimable: no subject with an event"),
        ([[3, 1], [3, 1]], "not estimable: no subject outlives one with an event"),
        ([[3, 1], [3, 0]], None),
    ],
)
def test_what_cannot_be_estimated_says_why(outcomes, reason):
    measures = SurvivalMeasures()
    values = np.array(outcomes, dtype=float).reshape(-1, 2)
    assert measures.why_not("concordance", values) == reason
    weights = np.ones((1, len(values)))
    found = measures.weighted(values, np.zeros((len(values), 1)), 0.5, weights, ["concordance"])
    assert np.isnan(found["concordance"][0]) == (reason is not None)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Returns the folder that a run was in, and what it left."""
    home = tmp_path_factory.mktemp("survival")
    return home, run_task(home, TASK)


def test_a_run_comes_near_the_concordance_of_the_truth(done):
    known = truth(0, 160)
    best = slow_concordance(known["months"], known["died"], known["hazard"], np.ones(160))
    report = done[1].report
    estimate = report["models"]["fused"]["pooled"]["concordance"]
    assert estimate["value"] == pytest.approx(best, abs=0.04)
    assert estimate["low"] < best < estimate["high"]
    assert report["models"]["one"]["subject"]["concordance"]["value"] < estimate["value"]
    assert (report["task"], report["classes"], report["threshold"]) == ("survival", [], None)
    events = int(known["died"].sum())
    assert report["counts"]["subjects_by_class"] == {"censored": 160 - events, "event": events}
    assert [entry["metric"] for entry in report["differences"]] == ["concordance"] * 2


def test_the_summary_speaks_of_concordance_and_events(done):
    text = report_text(done[1].report)
    assert "concordance" in text
    assert "AUC" not in text
    assert " event) with 320 samples." in text


def test_predictions_and_predict_give_the_log_hazard(done):
    home, result = done
    lines = (result.folder / "predictions.csv").read_text().splitlines()
    assert lines[0] == "level,model,repeat,fold,sample,subject,time,event,log_hazard,simulated"
    (home / "rows.csv").write_text("a,b,c\n0,0,0\n3,1,2\n,,2\n")
    learned = open_run(result.folder, load(TASK)[1], home)
    answers = predict(learned, read_rows(learned, home / "rows.csv", None, None), places_in(home), tell)
    hazards = [row.predictions[0] for row in answers.rows]
    assert hazards[1] > hazards[0] + 2
    assert [row.predicted for row in answers.rows] == [None] * 3
    assert [row.model for row in answers.rows] == ["fused", "fused", "two"]
    assert answers.to_csv().splitlines()[0] == "sample,log_hazard,model,missing,simulated"


def test_log_hazards_are_zero_on_average_over_training_rows(done):
    loaded, _ = load(TASK)
    prepared = prepare(loaded, places_in(done[0]), tell)
    for fold in prepared.folds:
        plan = plan_steps(prepared.main, fold, 0)
        said = predict_logits(prepared.main, plan.origins, fold.train)
        assert float(said.mean()) == pytest.approx(0, abs=1e-5)


def test_a_run_is_evaluated_on_other_subjects(done):
    home, result = done
    registry = load(TASK)[1]
    learned = open_run(result.folder, registry, home, ["source.seed=5"])
    other = evaluate(learned, registry, places_in(home), tell, Seen(), home / "evaluations" / "other")
    known = truth(5, 160)
    best = slow_concordance(known["months"], known["died"], known["hazard"], np.ones(160))
    assert other.report["models"]["fused"]["subject"]["concordance"]["value"] == pytest.approx(best, abs=0.04)


def test_everything_that_is_wrong_with_the_cells_is_said_at_once(tmp_path):
    cells = {
        "months": {"s0.1": "-3", "s0.2": "soon", "s0.3": "", "s0.5": ""},
        "died": {"s0.4": "perhaps", "s0.5": ""},
    }
    with pytest.raises(DataError) as caught:
        run_task(tmp_path, TASK, cells=cells)
    assert [problem for problem in caught.value.problems if "/0" in problem] == [
        "sample s0.1/0 (subject s0.1): months: a time before 0 ('-3'). Mend the cell, or blank the outcome.",
        "sample s0.2/0 (subject s0.2): months: not a number ('soon'). Mend the cell, or blank the outcome.",
        "sample s0.3/0 (subject s0.3): months: missing, where the other half of the outcome is known "
        f"('{truth(0, 160)['died'][3]}'). Fill it in, or blank both.",
        "2 samples (s0.4/0, s0.4/1): died: neither yes ('1') nor no ('0') ('perhaps'). Name it under "
        "task.positive or task.negative, declare the column binary, or blank the cell.",
    ]


def test_words_for_events_are_named_once_each_and_nothing_else_is_said(done):
    home, result = done
    words = {f"s9.{i}": "dead" if died else "alive" for i, died in enumerate(truth(9, 160)["died"])}
    overrides = ["source.seed=9", f"source.cells={json.dumps({'died': words})}"]
    registry = load(TASK)[1]
    learned = open_run(result.folder, registry, home, overrides)
    with pytest.raises(DataError) as caught:
        evaluate(learned, registry, places_in(home), tell, Seen(), home / "evaluations" / "words")
    texts = list(words.values())
    firsts = {word: [i for i, text in enumerate(texts) if text == word][:3] for word in dict.fromkeys(texts)}
    assert list(caught.value.problems) == [
        f"{2 * texts.count(word)} samples (s9.{a}/0, s9.{a}/1, s9.{b}/0, s9.{b}/1, s9.{c}/0, ...): died: "
        f"neither yes ('1') nor no ('0') ('{word}'). Name it under task.positive or task.negative, declare "
        "the column binary, or blank the cell."
        for word, (a, b, c) in firsts.items()
    ]


def test_the_columns_of_the_outcome_are_there(tmp_path):
    with pytest.raises(DataError, match=r"task: the data have no column 'monhts'"):
        run_task(tmp_path, TASK.replace("months", "monhts"))


def test_texts_of_the_event_may_be_given():
    node = SurvivalNode(kind="survival", time="t", event="e", positive=("dead",), negative=("alive", "lost"))
    task = Survival(node)
    manifest = type("M", (), {"schema": {}})()
    assert task.parse(manifest, ["3.5", "dead"]) == ([3.5, 1.0], [])
    assert task.parse(manifest, ["3.5", "lost"]) == ([3.5, 0.0], [])
    assert task.parse(manifest, ["3.5", "1"])[1] == [
        "e: neither yes ('dead') nor no ('alive' or 'lost') ('1'). Name it under "
        "task.positive or task.negative, declare the column binary, or blank the cell."
    ]


def test_rows_that_lack_one_half_are_one_sentence_and_of_other_texts_20_are_told(tmp_path):
    words = {f"s0.{i}": f"word {i}" for i in range(24)}
    gone = {f"s0.{i}": "" for i in range(30, 40)}
    loaded, _ = load(TASK, cells={"died": words | gone})
    with pytest.raises(DataError) as caught:
        prepare(loaded, places_in(tmp_path), tell)
    problems = caught.value.problems
    assert len(problems) == 21
    assert problems[0].startswith(
        "2 samples (s0.0/0, s0.0/1): died: neither yes ('1') nor no ('0') ('word 0'"
    )
    assert (
        problems[-1] == "task: and 28 more cells of the outcome."
    )  # 4 words and 10 blanks, two samples each
    loaded, _ = load(TASK, cells={"died": gone})
    (problem,) = examine(loaded, places_in(tmp_path), tell).audit.problems()
    assert problem.startswith("sample s0.30/0 (subject s0.30): died: missing, where the other half of the ")
    assert problem.endswith(
        " Fill it in, or blank both. Alike: 19 more rows (s0.30/1, s0.31/0, s0.31/1, ...)."
    )
