"""missing: learned models on test rows with part of a modality blanked."""

from __future__ import annotations

import csv
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_images
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_images import COUNTS, make_manifest

from fusionkit.errors import RecipeError
from fusionkit.evaluation.missing import Blanked, Blanks
from fusionkit.evaluation.summary import report_text
from fusionkit.learned import open_run
from fusionkit.prepare import Places
from fusionkit.run import RunResult, run

RECORD = ("number", "word")
EVERY = range(36)
RATES = st.floats(0, 1)


def quiet(name: str, data: Any) -> None:
    pass


def run_toy(folder: Path, *overrides: str, registry: Any = None) -> RunResult:
    places = Places(folder / "data", folder / "store", folder / "runs")
    return run(toy_images.load(*overrides), registry or toy_images.make_registry(), places, quiet)


def predictions_of(result: RunResult, model: str) -> dict[tuple[str, ...], str]:
    with open(result.folder / "predictions.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == model]
    return {
        (r["level"], r["repeat"], r["fold"], r["sample"], r["subject"]): r["probability_yes"] for r in rows
    }


def make_blanks(order: Any = EVERY, rows: Any = None, columns: Any = RECORD, **options: Any) -> Blanks:
    manifest = make_manifest(Path("nowhere"), order=list(order))

    def key(row: int) -> bytes | None:
        return manifest.samples[row].encode()

    given_rows = range(len(manifest)) if rows is None else rows
    return Blanks(manifest, given_rows, columns, options.pop("key", key), **{"seed": 0, **options})


def blank(blanks: Blanks, rate: float) -> set[tuple[str, str]]:
    """Returns sample and column of every cell that a rate blanks."""
    manifest = blanks.at(rate)
    return {
        (manifest.samples[row], name)
        for name in manifest.cells.columns
        for row, cell in enumerate(manifest.cells[name])
        if cell is None
    }


# which cells


@given(RATES, RATES, st.integers(0, 50))
def test_what_is_blank_at_a_rate_is_blank_at_every_higher_one(a, b, draw):
    blanks = make_blanks(draw=draw)
    assert blank(blanks, min(a, b)) <= blank(blanks, max(a, b))


def test_no_cell_is_blank_at_0_and_every_one_at_1():
    blanks = make_blanks()
    assert blank(blanks, 0) == set()
    assert blank(blanks, 1) == {(f"sample{row:02}", name) for row in EVERY for name in RECORD}
    assert blanks.at(0).cells.equals(blanks.manifest.cells)


@given(st.permutations(list(EVERY)), RATES)
@settings(max_examples=30)
def test_no_blank_depends_on_the_order_of_rows(order, rate):
    assert blank(make_blanks(order), rate) == blank(make_blanks(), rate)


def test_no_blank_depends_on_who_else_is_tested():
    alone = blank(make_blanks(rows=[7]), 0.5)
    assert alone == {cell for cell in blank(make_blanks(), 0.5) if cell[0] == "sample07"}


def test_rows_that_are_not_tested_lose_nothing():
    assert {sample for sample, _ in blank(make_blanks(rows=[3, 4]), 1)} == {"sample03", "sample04"}


def test_the_share_of_blanks_is_the_rate():
    many = [blank(make_blanks(draw=draw), 0.3) for draw in range(100)]
    # 7200 cells: a deviation of .0054
    assert sum(map(len, many)) / 7200 == pytest.approx(0.3, abs=0.02)


def test_another_seed_or_draw_blanks_other_cells():
    found = [blank(make_blanks(seed=seed, draw=draw), 0.5) for seed in (0, 1) for draw in (0, 1)]
    assert len({frozenset(one) for one in found}) == 4


def test_columns_are_blanked_independently():
    blanks = make_blanks()
    first, second = blanks.numbers.T
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.5
    assert blank(make_blanks(columns=("word",)), 0.5) == {c for c in blank(blanks, 0.5) if c[1] == "word"}


def test_rows_with_the_same_record_lack_the_same():
    blanks = make_blanks(key=lambda row: b"same" if row < 6 else None)
    assert len({tuple(numbers) for numbers in blanks.numbers[:6].tolist()}) == 1


def test_a_modality_with_files_is_there_or_not_as_a_whole():
    blanks = make_blanks(columns=("picture", "number"))
    found = blank(blanks, 0.5)
    assert 0 < len(found) < 72
    assert all(count == 2 for count in Counter(sample for sample, _ in found).values())


def test_a_model_is_named_after_what_it_lacks():
    names = [Blanked("fused", "emr", rate).name for rate in (0.0, 0.1, 0.30, 1.0)]
    assert names == [f"fused_missing_emr_{text}" for text in ("0", "0.1", "0.3", "1")]


# in a run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("missing")


@pytest.fixture(scope="module")
def plain(place):
    return run_toy(place)


@pytest.fixture(scope="module")
def tested(place, plain):
    before = Counter(COUNTS)
    result = run_toy(place, "evaluation.missing={record: [0, 0.5, 1], image: [0.5]}")
    return result, COUNTS - before


def test_nothing_is_learned_and_no_stored_feature_computed_again(tested):
    result, seen = tested
    assert result.computed == 0
    assert seen["toy_conv"] == 0


def test_the_plain_models_are_what_they_are_without(plain, tested):
    for model in plain.report["models"]:
        assert predictions_of(tested[0], model) == predictions_of(plain, model)
        assert tested[0].report["models"][model] == plain.report["models"][model]


def test_those_models_are_tested_that_read_the_modality(plain, tested):
    assert set(tested[0].report["models"]) - set(plain.report["models"]) == {
        *(f"{model}_missing_record_{rate}" for model in ("fused", "record") for rate in ("0", "0.5", "1")),
        *(f"{model}_missing_image_0.5" for model in ("fused", "image")),
    }


@pytest.mark.parametrize("model", ["fused", "record"])
def test_rate_0_is_the_plain_model_bit_for_bit(tested, model):
    result, _ = tested
    assert predictions_of(result, f"{model}_missing_record_0") == predictions_of(result, model)
    models = result.report["models"]
    assert models[f"{model}_missing_record_0"] == models[model]


def test_rate_1_is_an_absent_modality(place, tested, monkeypatch):
    result, _ = tested
    assert predictions_of(result, "record_missing_record_1") == {}
    empty = result.report["models"]["record_missing_record_1"]
    assert empty["n_subjects"] == 0
    assert "no subject" in empty["subject"]["roc_auc"]["reason"]

    # the same learned parts on data whose records were never filled in
    from fusionkit import run as run_module

    real, without = run_module.predict_fold, {}

    def predict(experiment: Any, fold: Any, members: Any) -> Any:
        if experiment.modalities == ["image", "record"] and not without.get(fold.fold):
            manifest = experiment.manifest
            for row in range(len(manifest)):
                for column in RECORD:
                    manifest = toy_images.with_cell(manifest, column, row, None)
            absent = toy_images.replace(experiment, manifest=manifest, shared=type(experiment.shared)())
            without[fold.fold] = real(absent, fold, members).test
        return real(experiment, fold, members)

    monkeypatch.setattr(run_module, "predict_fold", predict)
    run_toy(place)
    expected = {
        (str(fold), sample): f"{probability:.8f}"
        for fold, rows in without.items()
        for sample, probability in zip(rows.samples, rows.predictions[:, 1].tolist(), strict=True)
    }
    found = predictions_of(result, "fused_missing_record_1")
    assert {(key[2], key[3]): value for key, value in found.items() if key[0] == "sample"} == expected


def test_a_blanked_file_is_an_absent_sample(tested):
    result, _ = tested
    have = {key[3] for key in predictions_of(result, "image_missing_image_0.5") if key[0] == "sample"}
    assert 0 < len(have) < 36
    # some processors sum a row otherwise in a batch of another size: equal but for the last digits
    plain = predictions_of(result, "image")
    for key, value in predictions_of(result, "image_missing_image_0.5").items():
        assert not key[3] or float(value) == pytest.approx(float(plain[key]), abs=1e-6)
    # with its picture and its record, a row is what it was
    fused, half = predictions_of(result, "fused"), predictions_of(result, "fused_missing_image_0.5")
    changed = {key[3] for key in fused if key[3] and abs(float(fused[key]) - float(half[key])) > 1e-6}
    assert changed == {f"sample{row:02}" for row in EVERY} - have


def test_no_prediction_depends_on_the_order_of_rows(tmp_path):
    learn = "evaluation={resamples: 100, missing: {record: [0.5]}}"
    fixed = "split={scheme: holdout, test: 0.5}"
    results = [run_toy(tmp_path, learn, fixed, f"source.order={order}") for order in ("given", "reversed")]
    blanks = []
    for result in results:
        fused, half = (predictions_of(result, name) for name in ("fused", "fused_missing_record_0.5"))
        samples = {key[3] for key in fused if key[0] == "sample"}
        blanks.append({s: [fused[k] != half[k] for k in fused if k[3] == s] for s in samples})
    common = set(blanks[0]) & set(blanks[1])
    assert common
    assert {s: blanks[0][s] for s in common} == {s: blanks[1][s] for s in common}


def test_each_model_is_compared_with_itself_and_curves_are_listed(tested):
    report = tested[0].report
    pairs = {(entry["a"], entry["b"]) for entry in report["differences"]}
    assert ("fused", "fused_missing_record_0.5") in pairs
    assert ("record", "record_missing_record_0.5") in pairs
    assert ("fused", "record_missing_record_0.5") not in pairs
    zero = [e for e in report["differences"] if e["b"] == "fused_missing_record_0"]
    assert [(e["value"], e["low"], e["high"]) for e in zero] == [(0, 0, 0)] * 2
    assert report["missing"][0] == {
        "model": "fused",
        "modality": "record",
        "draws": 1,
        "rates": [0, 0.5, 1],
        "models": [f"fused_missing_record_{rate}" for rate in ("0", "0.5", "1")],
    }


def test_several_draws_are_means_of_figures(place, plain):
    result = run_toy(place, "evaluation.missing={record: [0.5]}", "evaluation.missing_draws=3")
    model = result.report["models"]["fused_missing_record_0.5"]
    folds = model["folds"]
    assert [(fold["repeat"], fold["fold"]) for fold in folds] == [(r, f) for r in range(3) for f in range(2)]
    values = [fold["subject"]["roc_auc"] for fold in folds]
    assert model["subject"]["roc_auc"]["value"] == pytest.approx(np.mean(values))
    assert len(set(predictions_of(result, "fused_missing_record_0.5").values())) > 36
    once = run_toy(place, "evaluation.missing={record: [0.5]}")
    first = predictions_of(once, "fused_missing_record_0.5")
    of_draws = predictions_of(result, "fused_missing_record_0.5")
    assert {key: value for key, value in of_draws.items() if key[1] == "0"} == first
    difference = next(e for e in result.report["differences"] if e["b"] == "fused_missing_record_0.5")
    whole = result.report["models"]["fused"]["subject"]["roc_auc"]["value"]
    assert difference["value"] == pytest.approx(whole - np.mean(values))


def test_a_threshold_of_validation_subjects_stays_what_it_was(tmp_path):
    chosen = ("evaluation.threshold=validation", "split.validation=0.34")
    models = run_toy(tmp_path, "evaluation.missing={record: [0.5]}", *chosen).report["models"]
    plain, blanked = (
        [fold["threshold"] for fold in models[name]["folds"]]
        for name in ("fused", "fused_missing_record_0.5")
    )
    assert plain == blanked


def test_a_run_opens_for_predict_and_evaluate_as_ever(place, plain, tested):
    registry = toy_images.make_registry()
    opened = [open_run(result.folder, registry, place / "data") for result in (plain, tested[0])]
    assert opened[0].thresholds == opened[1].thresholds
    assert opened[0].models == opened[1].models


def test_a_modality_alone_is_tested_too(tmp_path):
    models = run_toy(tmp_path, "modalities.image=null", "evaluation.missing={record: [0.5]}").report["models"]
    assert set(models) == {"record", "record_pretrained", "record_missing_record_0.5"}


@pytest.mark.parametrize("width", [50, 80])
def test_curves_are_a_small_table(tested, width):
    report = tested[0].report
    text = report_text(report, width)
    assert max(map(len, text.splitlines())) <= width
    lines = text.splitlines()
    assert "AUC with a share of record blanked in the test rows:" in " ".join(text.split())
    at = next(i for i, line in enumerate(lines) if line.startswith("blanked")) - 1
    values = [
        report["models"][name]["subject"]["roc_auc"]["value"]
        for name in ("fused", *report["missing"][0]["models"][1:])
    ]
    assert re.split(" {2,}", lines[at + 1]) == ["blanked", "0 %", "50 %", "all"]
    assert lines[at + 2].split() == ["fused", *(f"{value:.3f}" for value in values)]
    assert lines[at + 3].split()[-1] == "none"
    assert "missing_record" not in text
    told = "record: with all of record blanked, 0 of 12 subjects have anything left that it reads; the others"
    assert told in " ".join(text.split())


@pytest.mark.parametrize("rates", ["[1]", "[0.5]", "[0.25, 0.5, 0.75, 1]"])
def test_a_curve_is_shown_of_files_too_and_of_any_number_of_shares(tmp_path, rates):
    result = run_toy(tmp_path, "modalities.record=null", f"evaluation.missing={{image: {rates}}}")
    lines = report_text(result.report).splitlines()
    share = "image" if rates == "[1]" else "a share of image"
    at = lines.index(f"AUC with {share} blanked in the test rows:")
    values = [
        result.report["models"][name]["subject"]["roc_auc"]["value"]
        for name in ("image", *result.report["missing"][0]["models"])
    ]
    assert lines[at + 2].split() == ["image", *("none" if v is None else f"{v:.3f}" for v in values)]


# in a recipe


def test_mistakes_are_named_together():
    given_rates = "evaluation.missing={recrod: [0.1], record: [0.1, 0.10, 1.5], image: []}"
    with pytest.raises(RecipeError) as caught:
        toy_images.load(given_rates)
    place = f"override '{given_rates}': evaluation.missing"
    assert sorted(caught.value.problems) == [
        f"{place}.image: there is no rate ([]). Give shares from 0 to 1, such as [0.1, 0.3, 0.5].",
        f"{place}.record[1]: the rate is given twice (0.1). Keep one.",
        f"{place}.record[2]: must be at most 1 (1.5).",
        f"{place}.recrod: no such modality ('recrod'). Did you mean 'record'? Known: image, record.",
    ]


def test_rates_and_draws_make_no_absurd_number_together():
    with pytest.raises(RecipeError) as caught:
        toy_images.load(
            "evaluation={missing: {record: [0.1, 0.2]}, missing_draws: 100}",
            "split={scheme: folds, folds: 2, repeats: 1000}",
        )
    assert (
        "evaluation.missing: too many tests of one model (2 folds x 1000 repeats x 2 rates x 100 draws ="
        in (caught.value.problems[0])
    )


def test_no_modality_is_called_like_a_blanked_model():
    text = toy_images.RECIPE.replace("record", "fused_missing_x")
    with pytest.raises(RecipeError, match="what contains _missing_ mean something else"):
        toy_images.load(text=text)


def test_a_modality_that_is_removed_is_not_tested_without():
    loaded = toy_images.load("evaluation.missing={record: [0.5], image: [0.5]}", "modalities.image=null")
    assert loaded.recipe.evaluation.missing == {"record": (0.5,)}
