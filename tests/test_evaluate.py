"""A learned run on other data: all that it learned stays, and nobody is tested whom it learned from."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_images
from PIL import Image

import fusionkit_manifest
from fusionkit.errors import DataError, IntegrityError, RecipeError, ResourceError
from fusionkit.evaluate import Seen, evaluate, source_overrides
from fusionkit.evaluation.summary import report_text
from fusionkit.learned import open_run
from fusionkit.predict import predict, read_rows
from fusionkit.prepare import Places
from fusionkit.run import RunResult, run

HEADER = ["patient", "photo", "number", "word", "finding"]
SOURCE = """\
source:
  use: manifest
  table: a/rows.csv
  subject: patient
  outcome: finding
  classes: {no: [no, none], yes: "yes"}
  columns:
    photo: {kind: file}
    number: {kind: numeric, range: [-5, 5]}
    word: {kind: category, values: [a, b, c]}
"""
RECIPE = toy_images.RECIPE.replace("source: {use: toy_pictures}\n", SOURCE)
HOLDOUT = "split={scheme: holdout, test: 0.34}"


def quiet(name: str, data: Any) -> None:
    pass


def registry() -> Any:
    found = toy_images.make_registry()
    found.add("fusionkit_manifest", fusionkit_manifest)
    return found


def rows_of(prefix: str, seed: int, n: int = 36) -> list[list[str]]:
    """Returns rows of subjects with three samples each; every second subject has the finding."""
    rng = np.random.default_rng(seed)
    rows = []
    for row in range(n):
        is_yes = row // 3 % 2
        number = f"{rng.normal(2 * is_yes - 1, 1.2):.3f}"
        word = "abc"[row % 2 + is_yes]
        rows.append([f"{prefix}{row // 3:02}", f"{row:02}.png", number, word, "yes" if is_yes else "no"])
    return rows


def write_study(
    folder: Path, rows: Sequence[Sequence[str]], seed: int, header: Sequence[str] = tuple(HEADER)
) -> Path:
    """Writes a table and its pictures, brighter where the finding is there; a seed each."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for row in rows:
        level = 150 if row[-1] == "yes" else 100
        pixels = rng.integers(level - 60, level + 60, (12, 12, 3)).astype(np.uint8)
        if row[1]:
            Image.fromarray(pixels).save(folder / row[1])
    return write_table(folder / "rows.csv", rows, header)


def write_table(path: Path, rows: Sequence[Sequence[str]], header: Sequence[str] = tuple(HEADER)) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return path


class Study:
    """Data of two hospitals, a and b, and runs on those of a."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places = Places(folder, folder / "store", folder / "runs")
        write_study(folder / "a", rows_of("a", 1), 1)
        write_study(folder / "b", rows_of("b", 2), 2)

    def run(self, *overrides: str) -> RunResult:
        loaded = toy_images.load_text(RECIPE, registry(), overrides=overrides, data_root=self.folder)
        return run(loaded, registry(), self.places, quiet)

    def evaluate(
        self, result: RunResult, *overrides: str, seen: Seen | None = None, parent: Path | None = None
    ) -> RunResult:
        learned = open_run(result.folder, registry(), self.folder, overrides)
        parent = parent or result.folder / "evaluations"
        return evaluate(learned, registry(), self.places, quiet, seen or Seen(), parent)

    def other(self, result: RunResult, folder: Path, rows: Sequence[Sequence[str]], *more: str) -> RunResult:
        """Evaluates on other rows, with the pictures of b."""
        table = write_table(folder / "rows.csv", rows)
        images = self.folder / "b"
        return self.evaluate(result, *source_overrides(result.folder, table, images), *more)


B = "source.table=b/rows.csv"


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    return Study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def holdout(study) -> RunResult:
    return study.run(HOLDOUT)


def sums_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "evaluations" not in path.parts
    }


def table_of(result: RunResult) -> list[dict[str, str]]:
    with open(result.folder / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def samples_of(result: RunResult, model: str = "fused") -> dict[str, float]:
    rows = [row for row in table_of(result) if row["level"] == "sample" and row["model"] == model]
    return {row["sample"]: float(row["probability_yes"]) for row in rows}


def whole_report(result: RunResult) -> dict[str, Any]:
    report = json.loads((result.folder / "report.json").read_text())
    assert isinstance(report, dict)
    return report


# everything is frozen


def test_the_runs_own_test_subjects_give_the_runs_own_figures_to_the_last_byte(study, holdout):
    again = study.evaluate(holdout, seen=Seen(exclude=True))
    then, now = whole_report(holdout), whole_report(again)
    assert len(now["models"]) == 5
    for key in ("models", "differences", "counts", "classes", "threshold", "resamples", "unit", "simulated"):
        assert now[key] == then[key]
    assert (again.folder / "predictions.csv").read_bytes() == (
        holdout.folder / "predictions.csv"
    ).read_bytes()
    assert now["seen"] == {"subjects_by_id": 8, "subjects_by_file": 8, "excluded": True}


def test_an_evaluation_changes_nothing_of_the_run(study, holdout):
    before = sums_of(holdout.folder)
    result = study.evaluate(holdout, B)
    assert sums_of(holdout.folder) == before
    run_json = json.loads((result.folder / "run.json").read_text())
    assert run_json["folder"] == str(holdout.folder)
    kept = {f"model/{address}.safetensors": digest for address, digest in run_json["sha256"].items()}
    kept |= {**run_json["files"], "model/seen.safetensors": run_json["seen"]}
    assert len(kept) > 8
    assert {name: before[name] for name in kept} == kept


def test_no_row_depends_on_the_others_so_no_scaling_is_fitted_anew(study, holdout, tmp_path):
    whole = samples_of(study.evaluate(holdout, B))
    half = rows_of("b", 2)[18:]
    result = study.other(holdout, tmp_path, half)
    found = samples_of(result)
    assert len(found) == 18
    for number in range(18):
        assert found[f"row{number + 1}"] == pytest.approx(whole[f"row{number + 19}"], abs=1e-6)


def test_the_threshold_is_the_mean_of_those_that_the_folds_set(study):
    result = study.run("split={scheme: folds, folds: 2, validation: 0.34}", "evaluation.threshold=validation")
    then, now = result.report, study.evaluate(result, B).report
    for name, model in now["models"].items():
        thresholds = [fold["threshold"] for fold in then["models"][name]["folds"]]
        assert [fold["threshold"] for fold in model["folds"]] == [pytest.approx(np.mean(thresholds))]
    assert (now["threshold"], now["split"]) == ("validation", None)


def test_folds_and_initialisations_are_averaged_as_predict_does(study):
    result = study.run("seeds=2")
    found = samples_of(study.evaluate(result, B))
    learned = open_run(result.folder, registry(), study.folder)
    manifest = read_rows(learned, study.folder / "b" / "rows.csv", None, None)
    answers = predict(learned, manifest, study.places, quiet)
    assert len(found) == 36
    for number, row in enumerate(answers.rows, 1):
        assert found[f"row{number}"] == pytest.approx(row.predictions[1], abs=1e-6)


# what it leaves


def test_the_folder_explains_itself_in_the_shape_of_a_runs(study, holdout):
    result = study.evaluate(holdout, B)
    assert result.folder.parent == holdout.folder / "evaluations"
    names = {"report.json", "predictions.csv", "environment.json", "resolved.yaml", "run.json"}
    assert {path.name for path in result.folder.iterdir()} == names
    report = whole_report(result)
    assert set(whole_report(holdout)) <= set(report)
    assert report["counts"]["subjects_by_class"] == {"no": 6, "yes": 6}
    assert report["answered"] == {"fused": 36}
    assert [entry["b"] for entry in report["differences"] if entry["metric"] == "roc_auc"] == [
        "image",
        "record",
        "record_pretrained",
        "image_pretrained",
    ]
    for model in report["models"].values():
        assert model["n_subjects"] == 12
        assert model["subject"]["accuracy"]["low"] is not None
    resolved = (result.folder / "resolved.yaml").read_text()
    assert "table: b/rows.csv" in resolved
    environments = [(folder / "environment.json").read_bytes() for folder in (result.folder, holdout.folder)]
    assert environments[0] == environments[1]


def test_what_cannot_be_written_is_said_before_anything_is_read(study, holdout, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=r"file: cannot be written\. Choose another folder with --output"):
        study.evaluate(holdout, "source.table=gone.csv", parent=tmp_path / "file")


def test_one_that_fails_leaves_nothing(study, holdout, tmp_path):
    with pytest.raises(DataError, match="there is no such table"):
        study.evaluate(holdout, "source.table=gone.csv", parent=tmp_path)
    assert list(tmp_path.iterdir()) == []


# missing modalities


def test_what_fused_cannot_answer_is_answered_as_predict_does(study, holdout, tmp_path):
    rows = rows_of("b", 2)
    rows[0][1] = rows[1][1] = ""  # no picture
    rows[4][2] = rows[4][3] = ""  # no record
    rows[6][1] = rows[6][2] = rows[6][3] = ""
    rows[8][3] = ""  # half a record
    result = study.other(holdout, tmp_path, rows)
    report = result.report
    assert report["answered"] == {"record": 2, "fused": 32, "image": 1, "none": 1}
    fused, image, record = (samples_of(result, name) for name in ("fused", "image", "record"))
    assert (len(fused), len(image), len(record)) == (35, 33, 34)
    assert (fused["row1"], fused["row2"], fused["row5"]) == (record["row1"], record["row2"], image["row5"])
    assert fused["row3"] not in (record["row3"], image["row3"])
    assert "Samples without any modality, which no figure counts: 1." in report["warnings"]
    assert (
        "Samples that fused cannot answer were answered by a modality alone (1 by image, 2 by record)."
        in report["warnings"]
    )


def test_rows_without_outcome_are_predicted_and_not_scored(study, holdout, tmp_path):
    rows = rows_of("b", 2)
    for row in rows[:3]:
        row[4] = ""
    report = study.other(holdout, tmp_path, rows).report
    assert report["counts"]["subjects_without_outcome"] == 1
    assert report["models"]["fused"]["n_subjects"] == 11
    for row in rows:
        row[4] = ""
    with pytest.raises(DataError, match=r"^manifest: no subject has an outcome\. Name its column, or say "):
        study.other(holdout, tmp_path, rows)


# what is wrong with the other data


def test_other_data_are_audited_as_a_runs_own_are(study, holdout, tmp_path):
    rows = rows_of("d", 7)
    table = write_study(tmp_path / "d", rows, 7)
    pictures = table.parent
    overrides = source_overrides(holdout.folder, table, None)
    (pictures / "01.png").write_bytes(b"")
    (pictures / "35.png").write_bytes((pictures / "00.png").read_bytes())
    rows[2][2], rows[6][4] = "70", "yes"
    write_table(table, rows)
    with pytest.raises(DataError) as caught:
        study.evaluate(holdout, *overrides)
    value, empty, same, outcome, hint = caught.value.problems
    assert value == "sample row3 (subject d00): number: outside its range ('70'). Allowed: -5 to 5."
    assert (
        empty == f"sample row2 (subject d00): {pictures}/01.png: the file is empty (0 bytes). Fetch it again."
    )
    assert same.startswith(
        "sample row1 (subject d00) and sample row36 (subject d11): photo: the same file under two subjects ("
    )
    assert outcome.startswith("outcome: samples of one subject have different ones (d02: 2 no, 1 yes).")
    assert hint.startswith("evaluate: other data may declare what is missing, and a wider range: ")


def test_a_report_on_other_data_warns_of_subjects_and_records_not_of_columns(study, holdout, tmp_path):
    rows = rows_of("b", 2)
    for row in rows[:3]:
        row[0] = "B 01"
    for row in rows:
        row[3] = "a"
    warnings = study.other(holdout, tmp_path, rows).report["warnings"]
    (similar,) = [text for text in warnings if text.startswith("subjects: ")]
    assert similar.startswith(
        "subjects: ids that differ only by case, blanks or Unicode form ('B 01' and 'b01')"
    )
    assert any("samples of one subject have different values: number (" in text for text in warnings)
    assert not any("with one value" in text for text in warnings)


# whom the run learned from


def seen_subjects(result: RunResult) -> list[str]:
    with open(result.folder / "split.csv", newline="") as file:
        return list(dict.fromkeys(row["subject"] for row in csv.DictReader(file) if row["set"] != "test"))


def test_subjects_whom_the_run_learned_from_are_an_error(study, holdout, tmp_path):
    known = seen_subjects(holdout)[:2]
    rows = [*rows_of("b", 2)[:30], *([known[row // 33], *rows_of("b", 2)[row][1:]] for row in range(30, 36))]
    with pytest.raises(DataError) as caught:
        study.other(holdout, tmp_path, rows)
    assert caught.value.problems == (
        f"evaluate: the run learned from 2 subjects of these data ({known[0]}, {known[1]}). None of their "
        "files was seen. Leave them out with --exclude-seen; if they are other people with the same ids, "
        "say --new-subjects.",
    )
    overrides = source_overrides(holdout.folder, tmp_path / "rows.csv", study.folder / "b")
    without = study.evaluate(holdout, *overrides, seen=Seen(exclude=True)).report
    assert without["counts"]["subjects"] == 10
    assert "Left out, since the run learned from them: 2 subjects." in without["warnings"]
    new = study.evaluate(holdout, *overrides, seen=Seen(new_subjects=True)).report
    assert new["counts"]["subjects"] == 12
    assert (
        "Subjects with an id of the run's were taken for other people, as --new-subjects says."
        in new["warnings"]
    )


@pytest.mark.parametrize("new_subjects", [False, True])
def test_a_picture_that_the_run_learned_from_is_found_under_any_name(study, holdout, tmp_path, new_subjects):
    first = seen_subjects(holdout)[0]
    number = 3 * int(first[1:])
    folder = tmp_path / "c"
    table = write_study(folder, rows_of("c", 3), 3)
    shutil.copy(study.folder / "a" / f"{number:02}.png", folder / "07.png")
    overrides = source_overrides(holdout.folder, table, None)
    with pytest.raises(DataError) as caught:
        study.evaluate(holdout, *overrides, seen=Seen(new_subjects=new_subjects))
    assert caught.value.problems == (
        "evaluate: the run learned from files of 1 subject of these data (c02), under whatever name. Leave "
        "these subjects out with --exclude-seen.",
    )
    # the whole subject goes, not one of its pictures
    report = study.evaluate(holdout, *overrides, seen=Seen(exclude=True)).report
    assert report["counts"]["samples"] == 33


def test_where_nobody_is_left_that_is_said(study):
    result = study.run("evaluation.modalities_alone=false")  # two folds: everybody was in training
    with pytest.raises(DataError) as caught:
        study.evaluate(result, seen=Seen(exclude=True))
    assert caught.value.problems == (
        "evaluate: no subject is left, the run learned from all of them. Give other data.",
    )


def test_the_run_keeps_no_name_of_a_subject_in_its_model(holdout):
    data = (holdout.folder / "model" / "seen.safetensors").read_bytes()
    index = (holdout.folder / "model" / "index.json").read_text()
    for subject in seen_subjects(holdout):
        assert subject.encode() not in data
        assert f'"{subject}"' not in index


def test_the_hashes_of_whom_it_learned_from_are_verified(study, holdout, tmp_path):
    folder = Path(shutil.copytree(holdout.folder, tmp_path / "run"))
    path = folder / "model" / "seen.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(IntegrityError, match=r"seen\.safetensors: not what the run wrote"):
        open_run(folder, registry(), study.folder)


# what other data may be


def test_only_where_the_data_come_from_may_be_changed(study, holdout):
    with pytest.raises(RecipeError) as caught:
        study.evaluate(holdout, B, "seed=3", "head.use=toy_sum")
    only = "only where the data come from may be changed. Write source.OPTION=VALUE."
    assert caught.value.problems == (f"override 'seed=3': {only}", f"override 'head.use=toy_sum': {only}")


def test_other_classes_are_refused_and_other_words_for_them_are_not(study, holdout, tmp_path):
    with pytest.raises(DataError) as caught:
        study.evaluate(holdout, B, "source.classes={yes: 'yes', no: 'no'}")
    assert caught.value.problems == (
        "manifest: the classes are not those of the run, in its order (yes, no). The run knows: no, yes.",
    )
    rows = [[*row[:4], {"yes": "malignant", "no": "benign"}[row[4]]] for row in rows_of("b", 2)]
    renamed = study.other(holdout, tmp_path, rows, "source.classes={no: benign, yes: malignant}")
    assert renamed.report["models"] == study.evaluate(holdout, B).report["models"]


def test_a_value_outside_its_declaration_is_an_error_and_a_wider_declaration_a_warning(
    study, holdout, tmp_path
):
    rows = rows_of("b", 2)
    rows[3][2], rows[4][2] = "7", "?"
    with pytest.raises(DataError) as caught:
        study.other(holdout, tmp_path, rows)
    assert caught.value.problems == (
        "sample row4 (subject b01): number: outside its range ('7'). Allowed: -5 to 5.",
        "sample row5 (subject b01): number: not a finite number ('?'). Missing is written: "
        "nothing but an empty cell.",
        "evaluate: other data may declare what is missing, and a wider range: "
        "source.columns.NAME.missing=[TEXT], source.columns.NAME.range=[LEAST, GREATEST].",
    )
    wider = ("source.columns.number.range=[-10, 10]", "source.columns.number.missing=['?']")
    report = study.other(holdout, tmp_path, rows, *wider).report
    warning = "Columns may hold other values than in the run (number): the model may be asked for what it "
    assert f"{warning}never saw." in report["warnings"]


def test_a_declaration_that_would_move_codes_is_refused(study, holdout):
    with pytest.raises(IntegrityError, match=r"columns are declared otherwise than in the run \(word\)"):
        study.evaluate(holdout, B, "source.columns.word.values=[c, b, a]")


def test_another_source_will_do_if_it_reads_the_same_columns(study, holdout, tmp_path):
    with pytest.raises(RecipeError, match=r"the data have no such column \('photo'\)"):
        study.evaluate(holdout, "source={use: toy_pictures}")


def test_a_table_given_by_hand_brings_its_own_folder_of_files(study):
    result = study.run(HOLDOUT, "source.images=a")
    table = study.folder / "b" / "rows.csv"
    overrides = source_overrides(result.folder, table, None)
    assert overrides == [f'source.table="{table}"', "source.images=''"]
    found = samples_of(study.evaluate(result, *overrides))
    assert found == samples_of(study.evaluate(result, B, "source.images=b"))


def test_three_classes_have_no_threshold_and_are_evaluated_all_the_same(study, tmp_path):
    for name, seed in (("c", 5), ("d", 6)):
        rows = [
            [f"{name}{row[0][1:]}", *row[1:4], ["no", "yes", "perhaps"][index // 3 % 3]]
            for index, row in enumerate(rows_of(name, seed))
        ]
        write_study(tmp_path / name, rows, seed)
    classes = "source.classes={no: 'no', yes: 'yes', perhaps: perhaps}"
    result = study.run(HOLDOUT, classes, f"source.table={tmp_path}/c/rows.csv")
    report = study.evaluate(result, f"source.table={tmp_path}/d/rows.csv").report
    assert report["threshold"] is None
    assert report["counts"]["subjects_by_class"] == {"no": 4, "yes": 4, "perhaps": 4}
    assert report["models"]["fused"]["subject"]["accuracy"]["value"] is not None
    learned = open_run(result.folder, registry(), study.folder)
    manifest = read_rows(learned, tmp_path / "d" / "rows.csv", None, None)
    answers = predict(learned, manifest, study.places, quiet)
    assert {row.predicted for row in answers.rows} <= {"no", "yes", "perhaps"}


def test_fused_that_learned_with_dropout_answers_without_pictures_by_itself(study, tmp_path):
    result = study.run(HOLDOUT, "evaluation.resamples=100", "modalities.image.dropout=0.5")
    rows = [[row[0], "", *row[2:]] for row in rows_of("b", 2)]
    report = study.other(result, tmp_path, rows).report
    assert report["answered"] == {"fused": 36}
    assert report["models"]["fused"]["n_subjects"] == 12


def test_data_without_any_picture_are_answered_by_the_record(study, holdout, tmp_path):
    rows = [[row[0], "", *row[2:]] for row in rows_of("b", 2)]
    report = study.other(holdout, tmp_path, rows).report
    assert report["answered"] == {"record": 36}
    models = report["models"]
    assert models["fused"]["subject"] == models["record"]["subject"]
    assert models["image"]["n_subjects"] == 0
    assert models["image"]["subject"]["roc_auc"]["value"] is None
    lines = report_text(report).splitlines()
    assert next(line for line in lines if line.startswith("image  ")).split() == ["image", *["none"] * 4]
