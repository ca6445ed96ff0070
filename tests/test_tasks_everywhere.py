"""Every task through what surrounds it: sweeps, pretraining, early stopping, splits, tables of one's own."""

from __future__ import annotations

import csv
import json
import math
from typing import Any

import numpy as np
import pytest
from command_line import call
from sklearn.metrics import r2_score
from task_runs import HERE, load, places_in, run_task, tell
from task_toys import RECIPE, truth

from fusionkit.data.splits import make_folds
from fusionkit.errors import DataError, RecipeError
from fusionkit.prepare import prepare
from fusionkit.recipe.schema import FoldSplit, HoldoutSplit
from fusionkit.recipe.sweep import load_sweep
from fusionkit.recipe.task_nodes import SHOWN
from fusionkit.registry import Registry
from fusionkit.run import run
from fusionkit.sweep import run_experiments
from fusionkit.sweep_report import build_table, experiment_label
from fusionkit.sweep_tables import _short, table_csv, table_markdown, table_text

TASKS = {
    "ordinal": "{kind: ordinal}",
    "multi_label": "{kind: multi_label, columns: [likes, rare]}",
    "regression": "{kind: regression, column: score}",
    "survival": "{kind: survival, time: months, event: died}",
}
SWEEP = """\
name: both
base: task.yaml
overrides: {evaluation.resamples: 100, training.threads: 1, evaluation.missing: {two: [0.5]}}
reference: one alone
VARIANTS
variants:
  - {name: one alone, model: one}
  - {name: fused}
"""


def load_both(folder, task, more=""):
    (folder / "task.yaml").write_text(RECIPE.replace("TASK", task))
    (folder / "sweep.yaml").write_text(SWEEP.replace("VARIANTS", more))
    registry = Registry.discover([str(HERE / "toys.py"), str(HERE / "task_toys.py")])
    return load_sweep(folder / "sweep.yaml", registry, data_root=folder), registry


@pytest.mark.parametrize("kind", TASKS)
def test_a_sweep_compares_by_the_tasks_first_metric(kind, tmp_path):
    loaded, registry = load_both(tmp_path, TASKS[kind])
    recipes = {experiment_label(one, loaded): one.loaded for one in loaded.experiments}
    entry = build_table(loaded, run_experiments(recipes, registry, places_in(tmp_path), tell)).entry
    assert (entry["task"], entry["metric"]) == (kind, SHOWN[kind][0])
    one, fused = entry["rows"]
    assert tuple(fused["subject"]) == SHOWN[kind]
    assert one["subject"][entry["metric"]]["value"] < fused["subject"][entry["metric"]]["value"]
    assert fused["difference"]["low"] > 0
    heads = table_csv(entry).splitlines()[0].split(",")
    assert set(SHOWN[kind]) <= set(heads)
    assert "| one alone |" in table_markdown(entry)
    assert "one alone" in table_text(entry)


def test_a_sweeps_text_keeps_zeros_within_a_number_and_shortens_large_ones():
    assert _short({"value": 10.5, "low": 10.25, "high": 20.75}, "r2") == "10.500 10.25-20.75"
    assert _short({"value": 0.5, "low": 0.25, "high": 0.75}, "r2") == "0.500 .25-.75"
    large = {"value": 123456.0, "low": 110000.0, "high": 130000.0}
    assert _short(large, "r2") == "1.235e+05 1.1e+05 to 1.3e+05"


def test_a_sweeps_table_keeps_the_digits_of_small_errors(tmp_path):
    loaded, registry = load_both(tmp_path, TASKS["regression"], "metric: mae")
    recipes = {experiment_label(one, loaded): one.loaded for one in loaded.experiments}
    entry = build_table(loaded, run_experiments(recipes, registry, places_in(tmp_path), tell)).entry
    one, fused = entry["rows"]
    one["subject"]["mae"] = {"value": 0.000123456, "low": 0.0001, "high": 0.000234567}
    one["paper"] = {"mae": 0.00015}
    fused["difference"] |= {"value": -0.0000123456, "low": -0.00002, "high": 0.00001}
    lines = table_text(entry).splitlines()
    assert lines[1].split() == ["one", "alone", "0.0001235", ".0001-.000235", "0.00015"]
    assert lines[2].endswith(" -1.235e-05 -2e-05 to +1e-05")
    columns = [lines[0].index(word) for word in ("MAE", "paper", "minus")]
    assert [lines[1].index(word) for word in ("0.0001235", "0.00015")] == columns[:2]
    assert lines[2].index("-1.235e-05") == columns[2]
    markdown = table_markdown(entry)
    assert "| 0.0001235 [0.0001, 0.0002346] |" in markdown
    assert "| -1.235e-05 [-2e-05, +1e-05] |" in markdown


def test_a_curve_over_missing_cells_is_of_the_tasks_metric(tmp_path):
    (tmp_path / "task.yaml").write_text(RECIPE.replace("TASK", TASKS["survival"]))
    lines = SWEEP.replace("VARIANTS", "curve: two").replace("reference: one alone\n", "").splitlines()
    (tmp_path / "sweep.yaml").write_text("\n".join(line for line in lines if "model: one" not in line))
    registry = Registry.discover([str(HERE / "toys.py"), str(HERE / "task_toys.py")])
    loaded = load_sweep(tmp_path / "sweep.yaml", registry, data_root=tmp_path)
    recipes = {experiment_label(one, loaded): one.loaded for one in loaded.experiments}
    rows = build_table(loaded, run_experiments(recipes, registry, places_in(tmp_path), tell)).entry["rows"]
    assert [row["missing"] for row in rows] == [0, 0.5]
    assert rows[1]["subject"]["concordance"]["value"] < rows[0]["subject"]["concordance"]["value"]


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ("metric: roc_auc", "metric: no metric of the task survival ('roc_auc'). Known: concordance."),
        ("metric: r2", "metric: no metric of the task survival ('r2'). Known: concordance."),
    ],
)
def test_a_sweep_compares_by_no_other_tasks_metric(more, problem, tmp_path):
    with pytest.raises(RecipeError) as caught:
        load_both(tmp_path, TASKS["survival"], more)
    assert [text.split(": ", 1)[1] for text in caught.value.problems] == [problem]


def test_a_sweep_of_a_task_without_classes_has_no_roc_but_any_number_of_a_paper(tmp_path):
    with pytest.raises(RecipeError) as caught:
        load_both(tmp_path, TASKS["regression"], "roc: true")
    assert [text.split(": ", 1)[1] for text in caught.value.problems] == [
        "roc: the task regression has no ROC curves; classification has. Leave it out."
    ]
    text = SWEEP.replace("{name: fused}", "{name: fused, paper: {mae: 12.5, r2: -1}}")
    (tmp_path / "sweep.yaml").write_text(text.replace("VARIANTS", ""))
    registry = Registry.discover([str(HERE / "toys.py"), str(HERE / "task_toys.py")])
    loaded = load_sweep(tmp_path / "sweep.yaml", registry, data_root=tmp_path)
    assert loaded.sweep.variants[1].paper == {"mae": 12.5, "r2": -1}


@pytest.mark.parametrize("kind", TASKS)
def test_an_encoder_pretrains_on_every_task(kind, tmp_path):
    stages = (
        "stages=[{name: learn, pretrain: one.encoder, epochs: 30, learning_rate: 0.05}, "
        "{name: fuse, train: [head, two.encoder], epochs: 20, learning_rate: 0.03}]"
    )
    models = run_task(tmp_path, TASKS[kind], stages).report["models"]
    main = SHOWN[kind][0]
    alone, pretrained = (models[name]["subject"][main]["value"] for name in ("one", "one_pretrained"))
    assert pretrained == pytest.approx(alone, abs=0.12)


@pytest.mark.parametrize("kind", TASKS)
def test_every_task_stops_early_on_its_own_loss(kind, tmp_path):
    words = ["stages.fuse.early_stopping=3", "stages.fuse.epochs=200", "split.validation=0.25"]
    loaded, registry = load(TASKS[kind], *words, "evaluation.modalities_alone=false")
    losses = []

    def hear(name: str, data: Any) -> None:
        if name == "epoch_finished":
            losses.append(data["validation_loss"])

    run(loaded, registry, places_in(tmp_path), hear)
    n_folds = len(prepare(loaded, places_in(tmp_path), tell).folds)
    assert len(losses) < 200 * n_folds, "each model stopped, once nothing had improved for three epochs"
    assert all(math.isfinite(loss) for loss in losses)


def test_initialisations_are_averaged_on_the_outcomes_scale(tmp_path):
    report = run_task(tmp_path, TASKS["regression"], "seeds=2").report
    known = truth(0, 160)
    ceiling = r2_score(known["score"], 500 + 100 * known["hazard"])
    assert report["models"]["fused"]["subject"]["r2"]["value"] == pytest.approx(ceiling, abs=0.05)


def folds_of(split, codes, strata, needed):
    subjects = [f"p{i}" for i in range(len(codes))]
    names = [strata[code] for code in codes]
    manifest = type("M", (), {})()
    manifest.samples = manifest.subjects = subjects
    manifest.outcomes, manifest.classes = names, strata
    manifest.__class__.__len__ = lambda self: len(subjects)
    return make_folds(split, manifest, dict(zip(subjects, names, strict=True)), 0, needed)


def test_events_are_dealt_evenly_and_nobody_needs_to_be_censored():
    strata, needed = ("censored", "event"), ("event",)
    codes = [1] * 10 + [0] * 3
    for fold in folds_of(FoldSplit(scheme="folds", folds=5), codes, strata, needed):
        assert sum(codes[row] for row in fold.test) == 2
    folds_of(HoldoutSplit(scheme="holdout"), [1] * 6, strata, needed)
    with pytest.raises(DataError) as caught:
        folds_of(HoldoutSplit(scheme="holdout"), [0] * 6, strata, needed)
    assert list(caught.value.problems) == [
        "split: there is no 'event' subject (6 subjects with a known outcome). Use other data."
    ]


TABLE = """\
name: own
source:
  use: manifest
  table: rows.csv
  subject: patient
  columns: {age: {kind: numeric}, died: {kind: binary, values: [alive, dead], missing: [unknown]}}
task: {kind: survival, time: months, event: died}
modalities: {record: {encoder: {use: structured}}}
head: {use: concat_mlp, hidden: [4]}
stages:
  - {name: read, fit: [record.encoder]}
  - {name: learn, train: [head], epochs: 20, batch_size: 64, learning_rate: 0.02}
split: {scheme: holdout, test: 0.5}
evaluation: {resamples: 100}
"""


@pytest.mark.parametrize("classes", ["", "  classes: {no: alive, yes: dead}\n"])
def test_classes_need_the_column_of_the_outcome(classes, tmp_path, capsys, monkeypatch):
    text = TABLE.replace("task: {kind: survival, time: months, event: died}\n", "")
    (tmp_path / "own.yaml").write_text(text.replace("  columns:", f"{classes}  columns:"))
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, "validate", "own.yaml", "--data-root", ".")
    assert (code, out) == (3, "")
    assert err == (
        "error: own.yaml:2: source.outcome: classification needs the column of the outcome (null). "
        "Name it here, or set another task.kind.\n"
    )


def test_a_table_of_ones_own_needs_neither_classes_nor_declared_outcomes(tmp_path, capsys, monkeypatch):
    rng = np.random.default_rng(0)
    ages = rng.uniform(30, 90, 80)
    months = rng.exponential(100 * np.exp(-(ages - 60) / 10))
    rows = [
        f"p{i},{age:.0f},{month:.2f},{'dead' if month < 60 else 'alive'}"
        for i, (age, month) in enumerate(zip(ages, months, strict=True))
    ]
    rows[0] = "p0,50,,unknown"
    (tmp_path / "rows.csv").write_text("\n".join(["patient,age,months,died", *rows]) + "\n")
    (tmp_path / "own.yaml").write_text(TABLE)
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, "validate", "own.yaml", "--data-root", ".")
    assert (code, err) == (0, "")
    assert "  task     survival: months, died\n" in out
    code, out, err = call(capsys, "run", "own.yaml", "--data-root", ".", "-q")
    assert code == 0, err
    assert "concordance" in out
    report = json.loads(next(tmp_path.glob("runs/own/latest/report.json")).read_text())
    assert report["models"]["record"]["subject"]["concordance"]["value"] > 0.75
    with next(tmp_path.glob("runs/own/latest/predictions.csv")).open() as file:
        assert all(row["subject"] != "p0" for row in csv.DictReader(file))
    code, out, err = call(capsys, "predict", "runs/own/latest", "rows.csv", "--id", "patient", "-q")
    assert code == 0, err
    assert out.splitlines()[0] == "sample,log_hazard,model,missing,simulated"
    first = out.splitlines()[1].split(",")[1]
    out = call(capsys, "predict", "runs/own/latest", "rows.csv", "--id", "patient", "-q", "--json")[1]
    answers = json.loads(out)
    assert set(answers) == {"classes", "is_simulated", "rows", "changes", "columns"}
    assert answers["rows"][0]["predictions"] == [float(first)]
    assert "probabilities" not in answers["rows"][0]
    code, out, err = call(capsys, "data", "audit", "own.yaml", "--data-root", ".")
    assert code == 0, err
    assert "event" in out
