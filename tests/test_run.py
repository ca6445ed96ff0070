from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toy_images
from toy_images import COUNTS

from fusionkit import run as run_module
from fusionkit.errors import DataError, ResourceError
from fusionkit.evaluation.metrics import choose_threshold
from fusionkit.prepare import Places, plan_all, prepare
from fusionkit.run import RunResult, run
from fusionkit.store import Store
from fusionkit.training.experiment import Origin
from fusionkit.training.pretrain import predict_pretrained
from fusionkit.training.stages import plan_steps
from fusionkit.training.supervised import link


def quiet(name: str, data: Any) -> None:
    pass


def places(folder: Path) -> Places:
    return Places(folder / "data", folder / "store", folder / "runs")


def run_toy(folder: Path, *overrides: str, tell: Any = quiet) -> RunResult:
    loaded = toy_images.load(*overrides)
    return run(loaded, toy_images.make_registry(), places(folder), tell)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def trained_on(index: Any, model: str) -> set[tuple[str, ...]]:
    members = [member for member in index["members"] if member["model"] == model]
    return {tuple(pattern) for member in members for pattern in member["trained_on"]}


MISSING = [
    "record: cells are missing in its 32 rows (word 1). What stands for them is an option of toy_mean."
]


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> tuple[Path, RunResult]:
    folder = tmp_path_factory.mktemp("first")
    return folder, run_toy(folder)


# the folder


def test_a_run_is_a_folder_that_explains_itself(first):
    folder, result = first
    assert result.folder.parent == folder / "runs" / "pictures"
    names = {path.name for path in result.folder.iterdir()}
    assert names == {
        "recipe.yaml",
        "resolved.yaml",
        "environment.json",
        "split.csv",
        "report.json",
        "predictions.csv",
        "log.jsonl",
        "model",
    }
    assert (result.folder / "recipe.yaml").read_text() == toy_images.RECIPE
    assert read(result.folder / "report.json") == json.loads(json.dumps(result.report))
    environment = read(result.folder / "environment.json")
    assert environment["plugins"]["toy_images"] == "0"
    assert "torch" in environment


def test_the_resolved_recipe_loads_again_as_the_same(first):
    _, result = first
    text = (result.folder / "resolved.yaml").read_text()
    assert toy_images.load(text=text) == toy_images.load()


def test_latest_points_to_the_newest_run(tmp_path):
    one = run_toy(tmp_path)
    latest = tmp_path / "runs" / "pictures" / "latest"
    assert latest.resolve() == one.folder.resolve()
    other = run_toy(tmp_path)
    assert latest.is_symlink()
    assert not Path(latest.readlink()).is_absolute()
    assert latest.resolve() == other.folder.resolve() != one.folder.resolve()


def test_the_log_says_what_happened_in_order(first):
    _, result = first
    events = [json.loads(line) for line in (result.folder / "log.jsonl").read_text().splitlines()]
    names = Counter(event["event"] for event in events)
    assert names["fold_started"] == 2
    assert names["stage_started"] == names["stage_finished"] == result.computed
    assert names["batch_finished"] == names["features"] == 0
    assert events[0]["event"] == "reading"
    assert events[-1]["event"] == "run_finished"
    assert events[-1]["computed"] == result.computed
    seconds = [event["seconds"] for event in events]
    assert seconds == sorted(seconds)
    fold, epochs = 0, []
    for event in events:
        if event["event"] == "fold_started":
            fold = event["fold"]
        elif event["event"] == "epoch_finished":
            assert (event["fold"], event["member"]) == (fold, 1)
            assert event["model"] in result.report["models"]
            epochs.append({name: event[name] for name in ("epoch", "loss")})
        elif event["event"] == "stage_finished":
            assert event["fold"] == fold
            ends = [event[name] for name in ("first", "last") if name in event]
            assert ends == [*epochs[:1], *epochs[-1:]]
            epochs = []


def test_the_report_has_its_keys_and_says_that_the_data_are_simulated(first):
    report = first[1].report
    assert set(report["models"]) == {"fused", "image", "record", "image_pretrained", "record_pretrained"}
    for model in report["models"].values():
        assert {"value", "low", "high"} <= set(model["subject"]["roc_auc"])
        assert isinstance(model["sample"]["accuracy"], float)
    assert {entry["b"] for entry in report["differences"]} >= {"image", "record"}
    assert all({"a", "b", "metric", "value", "low", "high"} <= set(entry) for entry in report["differences"])
    assert report["recipe"] == "pictures"
    assert report["simulated"] is True
    assert report["unit"] == "subject"
    assert any("SIMULATED" in warning for warning in report["warnings"])
    assert not any("LEAKAGE" in warning for warning in report["warnings"])
    assert report["counts"]["subjects"] == 12
    assert report["device"]["precision"] == "fp32"


def test_no_subject_is_on_both_sides_of_a_fold_and_all_are_tested_once(first):
    _, result = first
    sides: dict[tuple[str, str], set[str]] = defaultdict(set)
    rows = rows_of(result.folder / "split.csv")
    for row in rows:
        sides[row["fold"], row["subject"]].add(row["set"])
    assert len(rows) == 72
    assert all(len(sets) == 1 for sets in sides.values())
    tested = [subject for (_, subject), sets in sides.items() if sets == {"test"}]
    assert sorted(tested) == [f"subject{number:02}" for number in range(12)]


def test_every_sample_and_subject_of_the_test_sets_is_predicted_once_per_model(first):
    _, result = first
    rows = rows_of(result.folder / "predictions.csv")
    counts = Counter((row["model"], row["level"]) for row in rows)
    for model in result.report["models"]:
        assert counts[model, "sample"] == 36
        assert counts[model, "subject"] == 12
    split = {
        (row["fold"], row["sample"]) for row in rows_of(result.folder / "split.csv") if row["set"] == "test"
    }
    predicted = {(row["fold"], row["sample"]) for row in rows if row["level"] == "sample"}
    assert predicted == split
    assert all(row["simulated"] == "true" for row in rows)


def test_the_model_folder_names_every_member_and_holds_every_artefact(first):
    folder, result = first
    index = read(result.folder / "model" / "index.json")
    assert [(entry["model"], entry["fold"], entry["member"]) for entry in index["members"]] == [
        (model, fold, 0) for fold in range(2) for model in ("fused", "image", "record")
    ]
    learned = {
        origin["address"]
        for entry in index["members"]
        for origin in entry["origins"].values()
        if origin["is_learned"]
    }
    assert learned == set(index["sha256"])
    held = {path.stem for path in (result.folder / "model").glob("*.safetensors")}
    assert held == learned | {"seen"}
    store = Store(folder / "store")
    for address, digest in index["sha256"].items():
        assert store.has(address)
        assert store.digest(address) == digest
    assert trained_on(index, "fused") == {("image", "record")}
    assert trained_on(index, "image") == {("image",)}
    assert index["plugins"] == {"toy_images": "0", "toys": "0"}
    assert (index["device"]["device"], index["device"]["precision"]) == ("cpu", "fp32")
    assert index["classes"] == ["no", "yes"]


# the same again


def test_the_same_again_computes_nothing_and_gives_the_same_bytes(first):
    folder, result = first
    COUNTS.clear()
    again = run_toy(folder)
    assert result.computed > 0
    assert again.computed == 0
    assert COUNTS["toy_conv"] == 0
    for name in ("predictions.csv", "report.json", "split.csv", "resolved.yaml"):
        assert (again.folder / name).read_bytes() == (result.folder / name).read_bytes()


def test_the_same_recipe_in_an_empty_store_gives_the_same_bytes(first, tmp_path):
    _, result = first
    other = run_toy(tmp_path)
    assert other.computed == result.computed
    for name in ("predictions.csv", "report.json", "split.csv"):
        assert (other.folder / name).read_bytes() == (result.folder / name).read_bytes()


def test_stopped_at_any_epoch_the_same_command_ends_at_the_same_numbers(first, tmp_path):
    _, result = first
    seen = []

    def interrupt(name: str, data: Any) -> None:
        if name == "epoch_finished":
            seen.append(data)
            if len(seen) in (3, 9, 10):
                raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            run_toy(tmp_path, tell=interrupt)
    assert not (tmp_path / "runs" / "pictures" / "latest").exists()
    end = run_toy(tmp_path, tell=interrupt)
    assert 0 < end.computed < result.computed
    name = "predictions.csv"
    assert (end.folder / name).read_bytes() == (result.folder / name).read_bytes()


def test_the_order_of_rows_changes_no_prediction(first, tmp_path):
    _, result = first

    def by_sample(folder: Path) -> dict[tuple[str, ...], dict[str, str]]:
        rows = rows_of(folder / "predictions.csv")
        return {(row["model"], row["fold"], row["sample"], row["subject"]): row for row in rows}

    reversed_rows = by_sample(run_toy(tmp_path, "source.order=reversed").folder)
    for key, row in by_sample(result.folder).items():
        for name in ("probability_no", "probability_yes"):
            assert float(reversed_rows[key][name]) == pytest.approx(float(row[name]), abs=1e-6)
    assert len(reversed_rows) == len(by_sample(result.folder))


# what is absent


def test_a_modality_alone_is_scored_on_the_subjects_that_have_it(tmp_path):
    result = run_toy(tmp_path, "source.blanks=true")
    rows = [row for row in rows_of(result.folder / "predictions.csv") if row["level"] == "sample"]
    samples: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        samples[row["model"]].add(row["sample"])
    every = {f"sample{row:02}" for row in range(36)}
    no_picture = {f"sample{row:02}" for row in (0, 1, 2, 7, 14, 21, 28, 35)}
    no_record = {f"sample{row:02}" for row in (3, 4, 5, 11)}
    assert samples["fused"] == every
    assert samples["image"] == samples["image_pretrained"] == every - no_picture
    assert samples["record"] == samples["record_pretrained"] == every - no_record
    assert [text for text in result.report["warnings"] if "cells are missing" in text] == MISSING
    models = result.report["models"]
    assert {name: models[name]["n_subjects"] for name in ("fused", "image", "record")} == {
        "fused": 12,
        "image": 11,
        "record": 11,
    }
    compared = {entry["b"]: entry["n_subjects"] for entry in result.report["differences"]}
    assert (compared["image"], compared["record"]) == (11, 11)
    index = read(result.folder / "model" / "index.json")
    assert trained_on(index, "fused") == {("image",), ("image", "record"), ("record",)}


def test_a_row_with_nothing_teaches_nothing_about_absence(tmp_path, monkeypatch):
    real = toy_images.make_manifest

    def spoil(*args: Any, **named: Any) -> Any:
        manifest = real(*args, **named)
        for row in (0, 30):
            for column in toy_images.SCHEMA:
                manifest = toy_images.with_cell(manifest, column, row, None)
        return manifest

    monkeypatch.setattr(toy_images, "make_manifest", spoil)
    result = run_toy(tmp_path, "evaluation.modalities_alone=false", "stages.fuse.batch_size=6")
    assert trained_on(read(result.folder / "model" / "index.json"), "fused") == {("image", "record")}
    said = "2 tested samples have no modality at all; no figure counts them."
    assert said in result.report["warnings"]


def test_two_rows_with_the_same_picture_and_no_record_are_predicted_alike(tmp_path, monkeypatch):
    real = toy_images.make_manifest

    def twins(*args: Any, **named: Any) -> Any:
        import polars as pl

        manifest = real(*args, **named)
        pictures = [
            "05.png" if row in (3, 4, 5) else name for row, name in enumerate(manifest.cells["picture"])
        ]
        cells = manifest.cells.with_columns(pl.Series("picture", pictures))
        return replace(manifest, cells=cells)

    monkeypatch.setattr(toy_images, "make_manifest", twins)
    result = run_toy(tmp_path, "source.blanks=true", "evaluation.modalities_alone=false")
    rows = rows_of(result.folder / "predictions.csv")
    fused = {row["sample"]: row["probability_yes"] for row in rows if row["model"] == "fused"}
    assert fused["sample03"] == fused["sample04"] == fused["sample05"]
    assert fused["sample03"] != fused["sample09"]


def test_modalities_alone_can_be_left_out(tmp_path):
    result = run_toy(tmp_path, "evaluation.modalities_alone=false")
    assert set(result.report["models"]) == {"fused", "image_pretrained", "record_pretrained"}


def test_of_two_pretrain_stages_of_an_encoder_the_report_has_what_the_last_one_leaves(tmp_path):
    more = "  - {name: more, pretrain: image.encoder, epochs: 3, batch_size: 8}\n"
    both = toy_images.RECIPE.replace("  - name: fuse\n", more + "  - name: fuse\n")
    loaded = toy_images.load("evaluation.modalities_alone=false", text=both)
    result = run(loaded, toy_images.make_registry(), places(tmp_path), quiet)
    assert set(result.report["models"]) == {"fused", "image_pretrained", "record_pretrained"}
    rows = rows_of(result.folder / "predictions.csv")
    found = [row for row in rows if (row["model"], row["level"]) == ("image_pretrained", "sample")]
    assert len(found) == 36
    prepared = prepare(loaded, places(tmp_path), quiet)
    experiment = prepared.main
    for fold in prepared.folds:
        step = next(step for step in plan_steps(experiment, fold, 0).steps if step.stage.name == "more")
        origin = Origin(step.address, 0, is_learned=True)
        logits = predict_pretrained(experiment, step.stage, origin, fold.test)
        expected = link(experiment, logits, "mean_logit")[:, 1]
        of_fold = {row["sample"]: row for row in found if row["fold"] == str(fold.fold)}
        samples = [experiment.manifest.samples[row] for row in fold.test]
        values = [float(of_fold[name]["probability_yes"]) for name in samples]
        assert values == pytest.approx(list(expected), abs=1e-7)


def test_a_recipe_of_one_modality_is_called_by_its_name(tmp_path):
    result = run_toy(tmp_path, "modalities.record=null")
    assert set(result.report["models"]) == {"image", "image_pretrained"}


# options of evaluation and split


def test_the_validation_threshold_is_the_best_one_there(tmp_path):
    result = run_toy(tmp_path, "evaluation.threshold=validation", "split.validation=0.34")
    rows = rows_of(result.folder / "split.csv")
    held_out = {(row["fold"], row["subject"]) for row in rows if row["set"] == "validation"}
    assert len(held_out) == 4
    tested = {(row["fold"], row["subject"]) for row in rows if row["set"] == "test"}
    assert not held_out & tested
    prepared = prepare(
        toy_images.load("evaluation.threshold=validation", "split.validation=0.34"), places(tmp_path), quiet
    )
    fold = prepared.folds[0]
    plan = next(plan for name, one, _, plan in plan_all(prepared) if name == "fused" and one == fold)
    rows = run_module.predict_fold(prepared.main, fold, [plan.origins]).validation
    assert rows is not None
    assert set(rows.subjects) == {subject for number, subject in held_out if number == "0"}
    by_subject: dict[str, list[float]] = defaultdict(list)
    for subject, probability in zip(rows.subjects, rows.predictions[:, 1], strict=True):
        by_subject[subject].append(probability)
    import numpy as np

    values = np.array([np.mean(found) for found in by_subject.values()])
    outcomes = np.array([prepared.outcomes[subject] for subject in by_subject])
    expected = choose_threshold(outcomes, np.stack([1 - values, values], 1))
    assert result.report["models"]["fused"]["folds"][0]["threshold"] == pytest.approx(expected)
    chosen = {fold["threshold"] for model in result.report["models"].values() for fold in model["folds"]}
    assert chosen != {0.5}


def test_splitting_by_sample_brands_the_report(tmp_path):
    result = run_toy(tmp_path, "split.unit=sample", "split.accept_leakage=true")
    assert result.report["unit"] == "sample"
    assert any(warning.startswith("LEAKAGE") for warning in result.report["warnings"])
    sides: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows_of(result.folder / "split.csv"):
        sides[row["fold"], row["subject"]].add(row["set"])
    assert any(len(sets) == 2 for sets in sides.values())


def test_initialisations_are_averaged_within_a_fold(tmp_path):
    result = run_toy(tmp_path, "seeds=3", "evaluation.modalities_alone=false")
    index = read(result.folder / "model" / "index.json")
    assert [(entry["fold"], entry["member"]) for entry in index["members"]] == [
        (fold, member) for fold in range(2) for member in range(3)
    ]
    prepared = prepare(
        toy_images.load("seeds=3", "evaluation.modalities_alone=false"), places(tmp_path), quiet
    )
    fold = prepared.folds[0]
    plans = [plan for _, one, _, plan in plan_all(prepared) if one == fold]
    each = [run_module.predict_fold(prepared.main, fold, [plan.origins]).test.predictions for plan in plans]
    together = run_module.predict_fold(prepared.main, fold, [plan.origins for plan in plans]).test.predictions
    assert len(each) == 3
    assert together == pytest.approx(sum(each) / 3)
    assert not (each[0] == each[1]).all()
    found = rows_of(result.folder / "predictions.csv")
    rows = {row["sample"]: row for row in found if row["fold"] == "0" and row["model"] == "fused"}
    sample = prepared.main.manifest.samples[fold.test[0]]
    assert float(rows[sample]["probability_yes"]) == pytest.approx(together[0, 1], abs=1e-7)


def test_a_plan_names_every_model_fold_and_initialisation_without_computing(tmp_path):
    prepared = prepare(toy_images.load("seeds=2"), places(tmp_path), quiet)
    found = [(name, fold.fold, member) for name, fold, member, _ in plan_all(prepared)]
    assert found == [
        (name, fold, member)
        for fold in range(2)
        for name in ("fused", "image", "record")
        for member in range(2)
    ]
    assert not (tmp_path / "store" / "artefacts").exists()


# mistakes


def test_a_cell_outside_its_declaration_stops_before_anything_is_computed(tmp_path, monkeypatch):
    real = toy_images.make_manifest

    def spoil(*args: Any, **named: Any) -> Any:
        import polars as pl

        manifest = real(*args, **named)
        words = ["z" if row in (2, 5) else word for row, word in enumerate(manifest.cells["word"])]
        cells = manifest.cells.with_columns(pl.Series("word", words))
        return replace(manifest, cells=cells)

    monkeypatch.setattr(toy_images, "make_manifest", spoil)
    with pytest.raises(DataError) as error:
        run_toy(tmp_path)
    assert error.value.problems == (
        "sample sample02 (subject subject00): word: not an allowed value ('z'). Known: a, b, c.",
        "sample sample05 (subject subject01): word: not an allowed value ('z'). Known: a, b, c.",
    )
    assert not (tmp_path / "store" / "artefacts").exists()
    assert not (tmp_path / "runs" / "pictures" / "latest").exists()


def test_a_runs_folder_that_cannot_be_written_is_said_at_once(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(ResourceError, match=r"cannot be written \(Not a directory\)"):
        run_toy(tmp_path)
    assert not (tmp_path / "store").exists()


def test_observers_see_the_run_and_cannot_stop_it(tmp_path, capsys):
    registry = toy_images.make_registry()
    seen: Counter[str] = Counter()

    class Observer:
        __file__ = __file__

        @staticmethod
        def fusionkit_event(name: str, data: Any) -> None:
            seen[name] += 1
            if name == "fold_started":
                raise RuntimeError("broken observer")

    from fusionkit import hookimpl

    Observer.fusionkit_event = staticmethod(hookimpl(Observer.fusionkit_event))  # type: ignore[method-assign]
    registry.manager.register(Observer, name="observer")
    run(toy_images.load("evaluation.modalities_alone=false"), registry, places(tmp_path), quiet)
    assert seen["fold_started"] == 2
    assert seen["run_finished"] == 1
    assert seen["epoch_finished"] > 0
    assert "plugin observer: fusionkit_event failed (broken observer)." in capsys.readouterr().err
