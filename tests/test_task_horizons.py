"""Probabilities of an event by a time: against slow oracles, a known hazard, and in a run end to end."""

from __future__ import annotations

import csv
import json
import math
import re

import numpy as np
import pytest
import torch
from command_line import call
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, roc_auc_score
from task_runs import HERE, load, places_in, run_task, tell
from task_toys import RECIPE, truth

from fusionkit.errors import DataError, RecipeError
from fusionkit.evaluate import Seen, evaluate
from fusionkit.evaluation.summary import report_text
from fusionkit.evaluation.survival import SurvivalMeasures, at_horizon, known_shares
from fusionkit.learned import open_run
from fusionkit.predict import predict, read_rows
from fusionkit.prepare import examine, prepare
from fusionkit.recipe.sweep import load_sweep
from fusionkit.recipe.task_nodes import SurvivalNode
from fusionkit.registry import Registry
from fusionkit.run import run
from fusionkit.sweep import run_experiments
from fusionkit.sweep_report import build_table, experiment_label
from fusionkit.tasks.survival import Survival, cumulative_hazard
from fusionkit.training.stages import plan_steps
from fusionkit.training.supervised import predict_logits

PLAIN = "{kind: survival, time: months, event: died}"
TASK = "{kind: survival, time: months, event: died, horizons: [6, 24]}"
OTHER_DATA = "Leave it out, or use other data."


def task_of(*horizons: float) -> Survival:
    return Survival(SurvivalNode(kind="survival", time="t", event="e", horizons=horizons))


def draw(seed: int, n: int = 30):
    """Returns hazards, times with ties, events, weights, each (n,)."""
    rng = np.random.default_rng(seed)
    events = rng.integers(0, 2, n)
    return rng.normal(size=n), rng.integers(0, 8, n).astype(float), events, rng.uniform(0.5, 2, n)


def slow_hazard(hazards, times, events, weights, horizon) -> float:
    """Breslow's estimator, as its definition says it: over times, events by who is at risk."""
    total = 0.0
    for time in sorted({t for t, e in zip(times, events, strict=True) if e and t <= horizon}):
        dying = sum(w for t, e, w in zip(times, events, weights, strict=True) if e and t == time)
        at_risk = sum(w * math.exp(h) for h, t, w in zip(hazards, times, weights, strict=True) if t >= time)
        total += dying / at_risk
    return total


def slow_uncensored(times, events, weights, before: float) -> float:
    """Kaplan and Meier's probability of not being censored before a time; events go first."""
    stays = 1.0
    for time in sorted({t for t, e in zip(times, events, strict=True) if not e and t < before}):
        here = [i for i in range(len(times)) if times[i] == time and not events[i]]
        left = sum(weights[i] for i in here) + sum(w for t, w in zip(times, weights, strict=True) if t > time)
        if left:
            stays *= 1 - sum(weights[i] for i in here) / left
    return stays


def slow_scores(times, events, said, weights, horizon) -> tuple[float, float]:
    """Returns Graf's Brier score and Uno's AUC, subject by subject and pair by pair."""
    rows = range(len(times))
    had = [bool(events[i] and times[i] <= horizon) for i in rows]
    is_still = [not had[i] and times[i] >= horizon for i in rows]
    shares = [0.0] * len(times)
    for i in rows:
        if weights[i] and (had[i] or is_still[i]):
            at = times[i] if had[i] else horizon
            shares[i] = weights[i] / slow_uncensored(times, events, weights, at)
    if not sum(shares[i] for i in rows if is_still[i]):
        return math.nan, math.nan
    brier = sum(shares[i] * (said[i] - had[i]) ** 2 for i in rows) / sum(weights)
    won = pairs = 0.0
    for i in rows:
        for j in rows:
            if had[i] and is_still[j]:
                pairs += shares[i] * shares[j]
                won += shares[i] * shares[j] * (0.5 * (said[i] == said[j]) + (said[i] > said[j]))
    return brier, won / pairs if pairs else math.nan


@pytest.mark.parametrize("seed", range(5))
def test_the_baseline_is_breslows_with_ties_and_weights(seed):
    hazards, times, events, weights = draw(seed)
    tensors = (torch.tensor(values, dtype=torch.float64) for values in (hazards, times, events, weights))
    found = cumulative_hazard(*tensors, (1.0, 3.5, 7.0))
    expected = [slow_hazard(hazards, times, events, weights, horizon) for horizon in (1.0, 3.5, 7.0)]
    assert found.tolist() == pytest.approx(expected, rel=1e-9)


def test_a_baseline_of_hazards_that_overflow_is_finite():
    hazards = torch.tensor([900.0, -900.0, 0.0], dtype=torch.float64)
    ones = torch.ones(3, dtype=torch.float64)
    found = cumulative_hazard(hazards, torch.tensor([1.0, 2, 3], dtype=torch.float64), ones, ones, (1.0, 3.0))
    assert found.tolist() == pytest.approx([0, 2])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(1, 14), horizon=st.sampled_from([0.5, 3.0, 4.5, 7.0]))
def test_scores_are_those_of_subjects_and_pairs_under_weights(seed, n, horizon):
    said, times, events, _ = draw(seed, n)
    said = (1 / (1 + np.exp(-said))).round(1)
    weights = np.random.default_rng(seed).integers(0, 4, (3, n)).astype(float)
    found = at_horizon(times, events > 0, said, weights, horizon)
    expected = [slow_scores(times, events, said, row, horizon) for row in weights]
    assert found["brier"] == pytest.approx([brier for brier, _ in expected], nan_ok=True)
    assert found["auc"] == pytest.approx([auc for _, auc in expected], nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(1, 40), horizon=st.sampled_from([0.5, 3.0, 6.5]))
def test_who_is_known_stands_for_all(seed, n, horizon):
    _, times, events, weights = draw(seed, n)
    shares = known_shares(times, events > 0, weights[None], horizon)[0]
    assert (shares[(events == 0) & (times < horizon)] == 0).all()
    if (times >= horizon).any() and shares[(times > horizon) | ((times == horizon) & (events == 0))].any():
        assert shares.sum() == pytest.approx(weights.sum())


def test_without_censoring_scores_are_those_of_two_classes():
    said, times, _, weights = draw(4, 50)
    said = 1 / (1 + np.exp(-said))
    found = at_horizon(times, np.ones(50, dtype=bool), said, weights[None], 4.0)
    had = times <= 4
    assert found["brier"][0] == pytest.approx(brier_score_loss(had, said, sample_weight=weights))
    assert found["auc"][0] == pytest.approx(roc_auc_score(had, said, sample_weight=weights))


def test_censored_at_the_horizon_is_without_the_event_by_then():
    # as where a study ends for all at five years
    times, events = np.array([1.0, 2, 5, 5, 5]), np.array([True, True, False, False, True])
    said = np.array([0.9, 0.4, 0.2, 0.5, 0.8])
    found = at_horizon(times, events, said, np.ones((1, 5)), 5.0)
    assert found["brier"][0] == pytest.approx(np.mean([0.1**2, 0.6**2, 0.2**2, 0.5**2, 0.2**2]))
    assert found["auc"][0] == pytest.approx(5 / 6)


def exponential(seed: int, n: int):
    """Returns log hazards, times when the event would be, and times and events under censoring."""
    rng = np.random.default_rng(seed)
    hazards = rng.normal(size=n)
    died_at = rng.exponential(10 * np.exp(-hazards))
    left_at = rng.uniform(0, 30, n)
    return hazards, died_at, np.minimum(died_at, left_at), (died_at <= left_at).astype(float)


def test_known_hazards_give_the_true_probabilities_and_they_are_calibrated():
    hazards, _, times, events = exponential(0, 4000)
    task = task_of(3, 12)
    targets = torch.tensor(np.stack([times, events], 1))
    # a head's log hazard has any origin
    logits = torch.tensor(hazards[:, None] + 5)
    state = task.fitted(targets.numpy()).state(lambda: logits, lambda: (targets, torch.ones(4000).double()))
    new, died_at, _, _ = exponential(1, 20000)
    said = task.link(torch.from_numpy(task.finish((new + 5)[:, None, None], state)))[:, 0].numpy()
    assert said[:, 0] == pytest.approx(new - hazards.mean(), abs=1e-6)
    for place, horizon in enumerate((3, 12)):
        assert np.abs(said[:, 1 + place] - (1 - np.exp(-horizon / 10 * np.exp(new)))).max() < 0.03
        for tenth in np.array_split(np.argsort(said[:, 1 + place]), 10):
            # 2000 subjects: four standard deviations of a share are at most 0.045
            assert (died_at[tenth] <= horizon).mean() == pytest.approx(
                said[tenth, 1 + place].mean(), abs=0.045
            )


def test_scores_under_censoring_are_those_that_all_followed_would_give():
    hazards, died_at, times, events = exponential(2, 20000)
    said = 1 - np.exp(-12 / 10 * np.exp(hazards))
    found = at_horizon(times, events > 0, said, np.ones((1, 20000)), 12.0)
    had = died_at <= 12
    assert found["brier"][0] == pytest.approx(brier_score_loss(had, said), abs=0.004)
    assert found["auc"][0] == pytest.approx(roc_auc_score(had, said), abs=0.008)
    # leaving out who is censored before would be far off
    known = (events > 0) & (times <= 12) | (times >= 12)
    assert abs(brier_score_loss(had[known], said[known]) - brier_score_loss(had, said)) > 0.008


@pytest.mark.parametrize(
    ("metric", "outcomes", "reason"),
    [
        ("brier_by_4", [], "not estimable: no subject with a known outcome"),
        ("brier_by_4", [[3, 1], [3.5, 0]], "not estimable: no subject is followed to 4 without the event"),
        ("auc_by_4", [[3, 1], [4, 1]], "not estimable: no subject is followed to 4 without the event"),
        ("auc_by_4", [[3, 0], [5, 1]], "not estimable: no subject has the event by 4"),
        ("brier_by_4", [[3, 0], [5, 1]], None),
        ("auc_by_4", [[4, 1], [4, 0]], None),
    ],
)
def test_what_cannot_be_estimated_says_why(metric, outcomes, reason):
    measures = SurvivalMeasures((4.0,))
    values = np.array(outcomes, dtype=float).reshape(-1, 2)
    assert measures.why_not(metric, values) == reason
    found = measures.weighted(
        values, np.full((len(values), 2), 0.5), 0.5, np.ones((1, len(values))), [metric]
    )
    assert list(found) == [metric]
    assert np.isnan(found[metric][0]) == (reason is not None)


def test_without_horizons_nothing_changes(tmp_path):
    assert task_of().identity() == {
        "task": "survival",
        "columns": ["t", "e"],
        "positive": None,
        "negative": None,
    }
    assert task_of(6, 24).identity()["horizons"] == [6, 24]
    assert SurvivalMeasures().metrics == SurvivalMeasures().compared == ("concordance",)
    addresses = []
    for task in (PLAIN, TASK):
        prepared = prepare(load(task)[0], places_in(tmp_path), tell)
        addresses.append(plan_steps(prepared.main, prepared.folds[0], 0).origins["head"].address)
    assert addresses[0] != addresses[1]


@pytest.mark.parametrize(
    ("horizons", "problem"),
    [
        ("[24, 6]", "`horizons` must rise"),
        ("[6, 6]", "`horizons` must rise"),
        ("[0]", "must be more than 0"),
    ],
)
def test_horizons_are_times_that_rise(horizons, problem):
    with pytest.raises(RecipeError, match=problem):
        load(TASK.replace("[6, 24]", horizons))


@pytest.mark.parametrize(
    ("horizons", "blank", "problem"),
    [
        ("[6, 500]", 0, "is followed so long (500, and the longest time there is LAST). " + OTHER_DATA),
        ("[0.0001]", 0, "has the event so early (0.0001). Leave it out, or use more data."),
        ("[6, 24]", 5, "is followed so long (6, and the longest time there is LAST). " + OTHER_DATA),
    ],
)
def test_a_horizon_where_training_says_nothing_is_an_error_before_anything_learns(
    horizons, blank, problem, tmp_path
):
    # of those who are followed longer, the second modality is not there: it alone cannot learn so much
    months = truth(0, 160)["months"]
    cells = {"c": {f"s0.{i}": "" for i in np.flatnonzero(months > blank)}} if blank else None
    loaded, registry = load(TASK.replace("[6, 24]", horizons), cells=cells)
    heard = []
    with pytest.raises(DataError) as caught:
        run(loaded, registry, places_in(tmp_path), lambda name, _: heard.append(name))
    expected = []
    found = examine(loaded, places_in(tmp_path), tell)
    for fold in found.folds:
        times = [months[row // 2] for row in fold.train]
        last = max(time for time in times if not blank or time <= blank)
        said = f"task.horizons: nobody in training {problem.replace('LAST', f'{last:g}')}"
        expected.append(f"repeat 0, fold {fold.fold}: {said}")
    assert len(expected) == 2
    assert caught.value.problems == tuple(expected)
    assert found.audit.problems() == expected  # what `data audit` prints, with exit code 4
    assert "audited" in heard
    assert "epoch_finished" not in heard


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Returns the folder that a run was in, and what it left."""
    home = tmp_path_factory.mktemp("horizons")
    return home, run_task(home, TASK, "seeds=2")


def test_a_run_predicts_nearly_the_true_probabilities(done):
    known, report = truth(0, 160), done[1].report
    with (done[1].folder / "predictions.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if (row["level"], row["model"]) == ("subject", "fused")]
    assert list(rows[0])[6:] == [
        "time",
        "event",
        "log_hazard",
        "probability_by_6",
        "probability_by_24",
        "simulated",
    ]
    place = [int(row["subject"].split(".")[1]) for row in rows]
    for horizon in (6, 24):
        assert all(re.fullmatch(r"[01]\.\d{8}", row[f"probability_by_{horizon}"]) for row in rows)
        said = np.array([float(row[f"probability_by_{horizon}"]) for row in rows])
        right = (1 - np.exp(-horizon / 12 * np.exp(known["hazard"])))[place]
        assert np.abs(said - right).mean() < 0.08
        assert said.mean() == pytest.approx(right.mean(), abs=0.05)
        best = at_horizon(known["months"][place], known["died"][place] > 0, right, np.ones((1, 160)), horizon)
        for metric in ("brier", "auc"):
            estimate = report["models"]["fused"]["pooled"][f"{metric}_by_{horizon}"]
            assert estimate["value"] == pytest.approx(best[metric][0], abs=0.04)
            assert estimate["low"] < best[metric][0] < estimate["high"]


def test_the_log_hazard_is_what_it_is_without_horizons(done, tmp_path):
    plain = run_task(tmp_path, PLAIN, "seeds=2")

    def hazards(result):
        with (result.folder / "predictions.csv").open() as file:
            return [row["log_hazard"] for row in csv.DictReader(file)]

    assert hazards(plain) == hazards(done[1])
    values = [result.report["models"]["fused"]["subject"]["concordance"] for result in (plain, done[1])]
    assert values[0] == values[1]


def test_probabilities_rise_with_the_horizon_and_members_are_averaged(done):
    home, result = done
    (home / "rows.csv").write_text("a,b,c\n0,0,0\n3,1,2\n,,2\n-9,-9,-9\n")
    learned = open_run(result.folder, load(TASK)[1], home)
    manifest = read_rows(learned, home / "rows.csv", None, None)
    answers = predict(learned, manifest, places_in(home), tell)
    assert answers.columns == ("log_hazard", "probability_by_6", "probability_by_24")
    said = np.array([row.predictions for row in answers.rows])
    assert (said[[0, 2, 3], 1] < said[[0, 2, 3], 2]).all()
    assert (said[1, 1:] > 0.99).all()
    assert (said[3, 1:] < 0.01).all()
    # four members: two folds, two initialisations
    prepared = prepare(load(TASK, "seeds=2")[0], places_in(home), tell)
    each = []
    for fold in prepared.folds:
        for member in range(2):
            origins = plan_steps(prepared.main, fold, member).origins
            logits = predict_logits(prepared.main, origins, [0])
            each.append(prepared.main.task.link(torch.from_numpy(logits))[0, 0].numpy())
    cells = {name: f"{truth(0, 160)[name][0]:.10g}" for name in "abc"}
    (home / "rows.csv").write_text(",".join(cells) + "\n" + ",".join(cells.values()) + "\n")
    answers = predict(learned, read_rows(learned, home / "rows.csv", None, None), places_in(home), tell)
    assert answers.rows[0].predictions == pytest.approx(np.mean(each, axis=0), abs=1e-6)
    first = next(csv.DictReader(answers.to_csv().splitlines()))
    assert first["probability_by_6"] == f"{answers.rows[0].predictions[1]:.8f}"
    assert float(first["log_hazard"]) == answers.rows[0].predictions[0]


def test_the_command_and_the_summary_speak_of_horizons(done, capsys):
    home, result = done
    (home / "rows.csv").write_text("a,b,c\n0,0,0\n")
    words = ["-p", str(HERE / "toys.py"), "-p", str(HERE / "task_toys.py"), "predict", str(result.folder)]
    rows = str(home / "rows.csv")
    code, out, err = call(capsys, *words, rows, "-q", "--data-root", str(home), "--json")
    assert code == 0, err
    assert json.loads(out)["columns"] == ["log_hazard", "probability_by_6", "probability_by_24"]
    text = report_text(result.report)
    assert "Brier by 6   AUC by 6     Brier by 24" in text
    months, died = truth(0, 160)["months"], truth(0, 160)["died"] > 0
    known, one = (months >= 6).sum() + (died & (months < 6)).sum(), result.report["horizons"][0]
    assert f"By 6: the state of {known} of 160 subjects is known; a Brier score of" in text
    assert f"of {one['brier_of_one_probability']:.3f} is that of one probability for all." in " ".join(
        text.split()
    )
    compared = [entry["metric"] for entry in result.report["differences"] if entry["b"] == "one"]
    assert compared == ["concordance", "brier_by_6", "brier_by_24"]


def test_other_subjects_who_are_followed_too_shortly_are_not_scored_by_then(done):
    home, result = done
    registry = load(TASK)[1]
    cells = {f"s5.{i}": f"{min(t, 20):.3f}" for i, t in enumerate(truth(5, 160)["months"])}
    overrides = ["source.seed=5", f"source.cells={json.dumps({'months': cells})}"]
    learned = open_run(result.folder, registry, home, overrides)
    other = evaluate(learned, registry, places_in(home), tell, Seen(), home / "evaluations" / "short")
    scores = other.report["models"]["fused"]["subject"]
    assert scores["brier_by_6"]["value"] == pytest.approx(0.12, abs=0.05)
    assert scores["brier_by_24"]["value"] is None
    assert scores["brier_by_24"]["reason"] == "not estimable: no subject is followed to 24 without the event"
    assert other.report["horizons"][1]["brier_of_one_probability"] is None
    text = report_text(other.report, 200)
    assert "Brier by 24 not estimable: no subject is followed to 24 without the event." in text
    assert f"By 24: the state of {other.report['horizons'][1]['known']} of 160 subjects is known.\n" in text


def test_a_sweep_compares_models_of_several_horizons_by_concordance(tmp_path):
    (tmp_path / "task.yaml").write_text(RECIPE.replace("TASK", TASK))
    (tmp_path / "sweep.yaml").write_text(
        "name: both\nbase: task.yaml\noverrides: {evaluation.resamples: 100, training.threads: 1}\n"
        "reference: two\nvariants:\n  - {name: two}\n  - {name: none, overrides: {task.horizons: []}}\n"
    )
    registry = Registry.discover([str(HERE / "toys.py"), str(HERE / "task_toys.py")])
    loaded = load_sweep(tmp_path / "sweep.yaml", registry, data_root=tmp_path)
    recipes = {experiment_label(one, loaded): one.loaded for one in loaded.experiments}
    rows = build_table(loaded, run_experiments(recipes, registry, places_in(tmp_path), tell)).entry["rows"]
    assert [list(row["subject"]) for row in rows] == [["concordance"]] * 2
    assert rows[0]["subject"]["concordance"]["value"] == rows[1]["subject"]["concordance"]["value"]
