"""A learned model on new rows: what is answered, by which model, and what is refused."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import toy_images
import toys

from fusionkit import ColumnSpec, RaiserSpec, __version__, hookimpl
from fusionkit.errors import DataError, IntegrityError, PluginError
from fusionkit.learned import open_run
from fusionkit.locks import users
from fusionkit.predict import Answers, _half_a_record, answering_model, predict, read_rows
from fusionkit.prepare import Places
from fusionkit.run import RunResult, run
from fusionkit.store import address_of

HOLDOUT = ("split={scheme: holdout, test: 0.34}", "evaluation.resamples=100")
COLUMNS = ("picture", "number", "word")


def quiet(name: str, data: Any) -> None:
    pass


def run_toy(folder: Path, *overrides: str, text: str = toy_images.RECIPE, registry: Any = None) -> RunResult:
    registry = registry or toy_images.make_registry()
    loaded = toy_images.load_text(text, registry, overrides=[*HOLDOUT, *overrides])
    return run(loaded, registry, Places(folder / "data", folder / "store", folder / "runs"), quiet)


@pytest.fixture(scope="module")
def holdout(tmp_path_factory) -> RunResult:
    return run_toy(tmp_path_factory.mktemp("holdout"))


@pytest.fixture(scope="module")
def with_blanks(tmp_path_factory) -> RunResult:
    return run_toy(tmp_path_factory.mktemp("blanks"), "source.blanks=true")


def folder_of(result: RunResult) -> Path:
    return result.folder.parents[2]


def pictures_of(result: RunResult) -> Path:
    return folder_of(result) / "store" / "sources" / "toy_pictures"


def write_table(path: Path, rows: Sequence[Mapping[str, str | None]], columns: Sequence[str]) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows([{name: row.get(name) or "" for name in columns} for row in rows])
    return path


def cells(*, blanks: bool = False) -> list[dict[str, str | None]]:
    """Returns the toy's 36 rows, each with its id."""
    manifest = toy_images.make_manifest(Path(), blanks=blanks)
    return [
        {"id": manifest.samples[row], **{name: manifest.cells[name][row] for name in COLUMNS}}
        for row in range(36)
    ]


def answer(result: RunResult, table: Path, sample: str | None = "id", **given: Any) -> Answers:
    learned = open_run(result.folder, toy_images.make_registry(), folder_of(result) / "data")
    images = given.get("images", pictures_of(result))
    manifest = read_rows(learned, table, images, sample)
    store = given.get("store", folder_of(result) / "store")
    return predict(learned, manifest, Places(Path("data"), store, Path("runs")), quiet)


def answer_rows(result: RunResult, folder: Path, rows: Sequence[Mapping[str, str | None]]) -> Answers:
    return answer(result, write_table(folder / "rows.csv", rows, ["id", *COLUMNS]))


def reported(result: RunResult, model: str) -> dict[str, tuple[float, ...]]:
    """Returns what the run's predictions.csv says of each sample it tested."""
    with open(result.folder / "predictions.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["level"] == "sample" and row["model"] == model]
    return {row["sample"]: (float(row["probability_no"]), float(row["probability_yes"])) for row in rows}


def assert_as_reported(answers: Answers, expected: Mapping[str, tuple[float, ...]]) -> None:
    assert len(answers.rows) == len(expected) > 0
    for row in answers.rows:
        assert row.predictions == pytest.approx(expected[row.sample], abs=1e-6)


# what is answered


def test_the_tested_rows_get_the_probabilities_of_the_report_in_an_empty_store(holdout, tmp_path):
    expected = reported(holdout, "fused")
    rows = [row for row in cells() if row["id"] in expected]
    table = write_table(tmp_path / "rows.csv", rows, ["id", *COLUMNS])
    answers = answer(holdout, table, store=tmp_path / "store")
    assert_as_reported(answers, expected)
    assert [row.sample for row in answers.rows] == [row["id"] for row in rows]
    assert {(row.model, row.missing) for row in answers.rows} == {("fused", "")}
    assert answers.classes == ("no", "yes")
    assert answers.is_simulated


@pytest.mark.parametrize(("alone", "missing"), [("image", "record"), ("record", "image")])
def test_where_only_one_modality_is_there_its_own_model_answers(holdout, alone, missing, tmp_path):
    expected = reported(holdout, alone)
    kept = {"image": ["picture"], "record": ["number", "word"]}[alone]
    rows = [{"id": row["id"], **{n: row[n] for n in kept}} for row in cells() if row["id"] in expected]
    answers = answer_rows(holdout, tmp_path, rows)
    assert_as_reported(answers, expected)
    assert {(row.model, row.missing) for row in answers.rows} == {(alone, missing)}
    # a table without the other modality's columns says the same
    without = answer(holdout, write_table(tmp_path / "few.csv", rows, ["id", *kept]))
    assert without == answers


def test_a_head_that_learned_without_a_modality_answers_itself(with_blanks, tmp_path):
    expected = reported(with_blanks, "fused")
    rows = [row for row in cells(blanks=True) if row["id"] in expected]
    answers = answer_rows(with_blanks, tmp_path, rows)
    assert_as_reported(answers, expected)
    assert {row.model for row in answers.rows} == {"fused"}
    assert {"", "image"} <= {row.missing for row in answers.rows}


@pytest.fixture(scope="module")
def with_dropout(tmp_path_factory) -> RunResult:
    asked = ["modalities.image.dropout=0.5", "modalities.image.absent=learned"]
    return run_toy(tmp_path_factory.mktemp("dropout"), *asked, "evaluation.missing={image: [1]}")


def test_fused_answers_what_dropout_taught_it_and_as_the_report_says(with_dropout, tmp_path):
    """Only the picture was taken away: without the record, the picture's own model answers."""
    expected = reported(with_dropout, "fused_missing_image_1")
    rows = [row | {"picture": None} for row in cells() if row["id"] in expected]
    answers = answer_rows(with_dropout, tmp_path, rows)
    assert_as_reported(answers, expected)
    assert {(row.model, row.missing) for row in answers.rows} == {("fused", "image")}
    rows = [row | {"number": None, "word": None} for row in cells()[:3]]
    answers = answer_rows(with_dropout, tmp_path, rows)
    assert {(row.model, row.missing) for row in answers.rows} == {("image", "record")}


def test_a_vector_that_was_changed_is_noticed(with_dropout, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(with_dropout.folder, folder)
    index = json.loads((folder / "model" / "index.json").read_text())
    address = index["members"][0]["origins"]["image.absent"]["address"]
    path = folder / "model" / f"{address}.safetensors"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(IntegrityError, match="not what the run wrote"):
        open_run(folder, toy_images.make_registry(), folder_of(with_dropout) / "data")


def test_a_row_says_what_it_lacks_and_one_with_nothing_has_no_answer(holdout, tmp_path):
    rows = cells()[:4]
    rows[1]["word"] = None
    rows[2] |= dict.fromkeys(COLUMNS)
    rows[3]["picture"] = None
    answers = answer_rows(holdout, tmp_path, rows)
    assert [(row.model, row.missing) for row in answers.rows] == [
        ("fused", ""),
        ("fused", "record: 1 of 2 cells (word)"),
        ("none", "image; record"),
        ("record", "image"),
    ]
    nothing = answers.rows[2]
    assert (nothing.predictions, nothing.predicted) == (None, None)
    assert answers.to_csv().splitlines()[3] == "sample02,,,,none,image; record,true"


def test_the_text_has_a_line_per_row_in_input_order(holdout, tmp_path):
    answers = answer_rows(holdout, tmp_path, cells()[:2])
    lines = answers.to_csv().splitlines()
    assert lines[0] == "sample,probability_no,probability_yes,predicted,model,missing,simulated"
    for line, row in zip(lines[1:], answers.rows, strict=True):
        no, yes = row.predictions
        assert no + yes == pytest.approx(1)
        called = "yes" if yes >= 0.5 else "no"
        assert line == f"{row.sample},{no:.8f},{yes:.8f},{called},fused,,true"


def test_permuted_rows_get_permuted_predictions_exactly(holdout, tmp_path):
    rows = cells(blanks=True)
    order = np.random.default_rng(1).permutation(len(rows))
    straight = answer_rows(holdout, tmp_path, rows)
    permuted = answer_rows(holdout, tmp_path, [rows[i] for i in order])
    assert list(permuted.rows) == [straight.rows[i] for i in order]
    assert {row.model for row in straight.rows} == {"fused", "image", "record"}


def test_a_row_does_not_depend_on_the_others(holdout, tmp_path):
    rows = cells()
    together = answer_rows(holdout, tmp_path, rows)
    for index in (0, 17):
        (alone,) = answer_rows(holdout, tmp_path, [rows[index]]).rows
        assert alone.predictions == pytest.approx(together.rows[index].predictions, abs=1e-6)


def test_reordered_and_further_columns_do_not_matter(holdout, tmp_path):
    rows = [{**row, "note": "x", "outcome": "perhaps"} for row in cells()]
    plain = answer_rows(holdout, tmp_path, rows)
    table = write_table(tmp_path / "other.csv", rows, ["outcome", "word", "note", "picture", "id", "number"])
    assert answer(holdout, table) == plain


def test_ids_may_repeat_or_be_blank_and_without_any_rows_are_numbered(holdout, tmp_path):
    rows = cells()[:3]
    rows[0]["id"] = rows[1]["id"] = "same"
    rows[2]["id"] = None
    answers = answer_rows(holdout, tmp_path, rows)
    assert [row.sample for row in answers.rows] == ["same", "same", ""]
    assert answers.rows[0].predictions != answers.rows[1].predictions
    numbered = answer(holdout, tmp_path / "rows.csv", sample=None)
    assert [row.sample for row in numbered.rows] == ["row1", "row2", "row3"]


def test_whoever_predicts_is_named_to_who_prunes_the_store(holdout, tmp_path):
    learned = open_run(holdout.folder, toy_images.make_registry(), folder_of(holdout) / "data")
    table = write_table(tmp_path / "rows.csv", cells()[:2], ["id", *COLUMNS])
    manifest = read_rows(learned, table, pictures_of(holdout), "id")
    locks, seen = tmp_path / "store" / "locks", []

    def tell(name: str, data: Any) -> None:
        seen.append(len(users(locks)))

    predict(learned, manifest, Places(Path("data"), tmp_path / "store", Path("runs")), tell)
    assert set(seen) == {1}
    assert users(locks) == []


def test_records_are_predicted_where_the_store_cannot_be_written(tmp_path):
    result = run_toy(tmp_path, "modalities.image=null")
    table = write_table(tmp_path / "rows.csv", cells()[:2], ["id", *COLUMNS])
    (tmp_path / "file").touch()
    assert answer(result, table, store=tmp_path / "file") == answer(result, table)


def test_files_lie_beside_the_table_unless_a_folder_is_given(holdout, tmp_path):
    shutil.copytree(pictures_of(holdout), tmp_path / "study")
    table = write_table(tmp_path / "study" / "rows.csv", cells()[:2], ["id", *COLUMNS])
    assert answer(holdout, table, images=None) == answer(holdout, table)


def test_a_table_without_rows_has_no_answers(holdout, tmp_path):
    assert answer_rows(holdout, tmp_path, []).rows == []


def test_folds_and_initialisations_are_averaged(tmp_path):
    result = run_toy(
        tmp_path, "split={scheme: folds, folds: 2}", "seeds=2", "evaluation.modalities_alone=false"
    )
    rows = cells()
    mean = answer_rows(result, tmp_path, rows)
    index = json.loads((result.folder / "model" / "index.json").read_text())
    del index["digest"]
    each = []
    for member in index["members"]:
        one = {**index, "members": [member]}
        text = json.dumps({**one, "digest": address_of(one)})
        (result.folder / "model" / "index.json").write_text(text)
        each.append([row.predictions for row in answer_rows(result, tmp_path, rows).rows])
    assert len(each) == 4
    assert np.array([row.predictions for row in mean.rows]) == pytest.approx(np.mean(each, axis=0))
    # nobody else can answer here
    rows[0]["picture"] = None
    (first, *_) = answer_rows(result, tmp_path, rows).rows
    assert (first.model, first.missing) == ("fused", "image (fused never learned without image)")


def test_a_recipe_of_one_modality_answers_under_its_name(tmp_path):
    result = run_toy(tmp_path, "modalities.record=null")
    rows = cells()[:2]
    rows[1]["picture"] = None
    answers = answer_rows(result, tmp_path, rows)
    assert [(row.model, row.missing) for row in answers.rows] == [("image", ""), ("none", "image")]


THREE = (
    toy_images.RECIPE.replace("columns: [number, word]", "columns: [number]")
    .replace("head: {use", "  text: {columns: [word], encoder: {use: toy_mean}}\nhead: {use")
    .replace("train: [head]", "train: [head, text.encoder]")
)


def test_of_three_modalities_fused_answers_the_sets_that_it_learned_from(tmp_path, monkeypatch):
    """Training rows lack number or word, never both, and no picture."""
    real = toy_images.make_manifest

    def thin(*args: Any, **named: Any) -> Any:
        manifest = real(*args, **named)
        for row in range(36):
            if row % 4 in (1, 2):
                manifest = toy_images.with_cell(manifest, ("number", "word")[row % 4 - 1], row, None)
        return manifest

    monkeypatch.setattr(toy_images, "make_manifest", thin)
    result = run_toy(tmp_path, text=THREE)
    monkeypatch.undo()
    kept = ["picture number word", "picture number", "picture word", "picture", "word", "number word"]
    rows = [
        {name: text if name in ("id", *columns.split()) else None for name, text in row.items()}
        for row, columns in zip(cells(), kept, strict=False)
    ]
    answers = answer_rows(result, tmp_path, rows)
    assert [(row.model, row.missing) for row in answers.rows] == [
        ("fused", ""),
        ("fused", "text"),
        ("fused", "record"),
        ("image", "record; text"),
        ("text", "image; record"),
        ("fused", "image (fused never learned without image)"),
    ]


@pytest.mark.parametrize(
    ("dropped", "trained_on", "here", "model"),
    [
        ((), ["a b c"], "a", "a"),
        (("b", "c"), ["a b c"], "a", "fused"),
        (("b", "c"), ["a b c"], "b", "b"),
        (("b",), ["a b c"], "a", "a"),
        (("b",), ["a b"], "a", "fused"),
        (("b",), ["b c"], "c", "fused"),
        (("a", "b", "c"), ["a b c"], "c", "fused"),
    ],
)
def test_dropout_counts_as_having_learned_without_what_it_took_away(dropped, trained_on, here, model):
    class Learned:
        models = ("fused", "a", "b", "c")

        class loaded:
            class recipe:
                modalities: ClassVar = dict.fromkeys("abc")
                dropouts: ClassVar = dict.fromkeys(dropped, 0.5)

        @staticmethod
        def trained_on(name: str) -> set[frozenset[str]]:
            assert name == "fused"
            return {frozenset(names.split()) for names in trained_on}

    assert answering_model(Learned, {name: name in here.split() for name in "abc"}) == model


def test_other_versions_than_the_runs_are_said(tmp_path, monkeypatch):
    result = run_toy(tmp_path, "evaluation.modalities_alone=false")
    assert answer_rows(result, tmp_path, cells()[:1]).changes == ()
    registry = toy_images.make_registry()
    assert registry.plugins["toys"].version == "0"
    path = result.folder / "model" / "index.json"
    index = json.loads(path.read_text())
    del index["digest"]
    assert index["fusionkit"] == __version__
    index["fusionkit"] = "0.0.9"
    index["plugins"]["toys"] = "9.9"
    index["device"] |= {"torch": "1.0", "precision": "bf16"}
    path.write_text(json.dumps({**index, "digest": address_of(index)}))
    import torch

    assert answer_rows(result, tmp_path, cells()[:1]).changes == (
        f"fusionkit 0.0.9, now {__version__}",
        "precision bf16, now fp32",
        f"torch 1.0, now {torch.__version__}",
        "toys 9.9, now 0",
    )


def test_each_model_calls_classes_by_its_own_threshold(tmp_path):
    result = run_toy(tmp_path, "evaluation.threshold=validation", "split.validation=0.4")
    models = json.loads((result.folder / "report.json").read_text())["models"]
    learned = open_run(result.folder, toy_images.make_registry(), tmp_path / "data")
    expected = {name: models[name]["folds"][0]["threshold"] for name in ("fused", "image", "record")}
    assert {name: learned.thresholds[name] for name in learned.models} == expected
    rows = [{**row, "picture": None} for row in cells()]
    for row in answer_rows(result, tmp_path, rows).rows:
        assert row.predicted == ("yes" if row.predictions[1] >= expected["record"] else "no")


# what is refused


def problems_of(result: RunResult, table: Path, sample: str | None = "id", **given: Any) -> tuple[str, ...]:
    with pytest.raises(DataError) as error:
        answer(result, table, sample, **given)
    return error.value.problems


def test_half_a_record_a_strange_id_and_a_bare_table_are_said_at_once(holdout, tmp_path):
    table = write_table(tmp_path / "half.csv", cells()[:2], ["picture", "number"])
    assert problems_of(holdout, table, "case") == (
        f"{table}: modality record has no column 'word'. Known: number, picture.",
        f"{table}: --id: there is no column 'case'. Known: number, picture.",
    )
    table = write_table(tmp_path / "none.csv", cells()[:2], ["id"])
    assert problems_of(holdout, table) == (
        f"{table}: none of the recipe's columns is there. Needed: picture, number, word.",
    )


def test_many_absent_columns_of_a_record_are_one_sentence():
    absent = [f"c{number}" for number in range(15)]
    assert _half_a_record("t.csv: modality record", absent, ["age"], Path("run")) == [
        f"t.csv: modality record: 15 columns are absent: {', '.join(absent[:12])} and 3 more. Add them, with "
        "blank cells where a value is not known, or leave out all columns of the modality; "
        "run/model/index.json names them all."
    ]
    assert len(_half_a_record("t.csv: modality record", absent[:5], ["age"], Path("run"))) == 5


def test_every_column_of_a_record_that_is_absent_is_named(tmp_path):
    text = toy_images.RECIPE.replace("columns: [number, word]", "columns: [number, word, other]")
    text = text.replace("use: toy_pictures", "use: toy_wide")

    class Wide(toy_images.PictureSource):
        schema: ClassVar[Any] = {**toy_images.SCHEMA, "other": ColumnSpec(kind="numeric")}

        def read(self, context: Any) -> Any:
            import polars as pl

            manifest = super().read(context)
            wide = manifest.cells.with_columns(pl.lit("1").alias("other"))
            return replace(manifest, cells=wide, schema=self.schema)

    registry = registry_with("wide", source_card(Wide))
    result = run_toy(tmp_path, "evaluation.modalities_alone=false", text=text, registry=registry)
    table = write_table(tmp_path / "half.csv", cells()[:1], ["picture", "number"])
    learned = open_run(result.folder, registry, tmp_path)
    with pytest.raises(DataError) as error:
        read_rows(learned, table, None, None)
    assert error.value.problems == (
        f"{table}: modality record has no column 'word'. Known: number, picture.",
        f"{table}: modality record has no column 'other'. Known: number, picture.",
    )


def test_values_and_files_that_cannot_be_are_named_by_row_and_column(holdout, tmp_path):
    rows = cells()[:4]
    rows[0]["word"] = "z"
    rows[1]["number"] = "many"
    rows[2]["picture"] = "gone.png"
    rows[3]["picture"] = "../outside.png"
    table = write_table(tmp_path / "rows.csv", rows, ["id", *COLUMNS])
    folder = pictures_of(holdout)
    assert problems_of(holdout, table) == (
        f"{table}: row2 (sample01): number: not a finite number ('many'). "
        "Missing is written: nothing but an empty cell.",
        f"{table}: row1 (sample00): word: not an allowed value ('z'). Known: a, b, c.",
        f"{table}: row3 (sample02): picture: there is no such file ({folder / 'gone.png'}). "
        "Check its name and the folder that it is relative to.",
        f"{table}: row4 (sample03): picture: a path that leaves its folder (../outside.png). "
        f"Only files in {folder} are read.",
    )


def test_without_ids_a_row_is_its_number_and_what_is_no_file_is_called_what_it_is(holdout, tmp_path):
    rows = cells()[:2]
    rows[0]["picture"], rows[1]["picture"] = "folder", "pipe"
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    table = write_table(tmp_path / "rows.csv", rows, COLUMNS)
    refused, cure = "picture: the file cannot be read", "Check it and its rights."
    assert problems_of(holdout, table, None, images=tmp_path) == (
        f"{table}: row1: {refused} ({tmp_path}/folder: it is a folder, not a file). {cure}",
        f"{table}: row2: {refused} ({tmp_path}/pipe: it is a named pipe, not a file). {cure}",
    )


def test_a_picture_that_is_broken_is_named_by_its_row(holdout, tmp_path):
    rows = cells()[:1]
    rows[0]["picture"] = "a.png"
    (tmp_path / "a.png").write_bytes(b"")
    table = write_table(tmp_path / "rows.csv", rows, ["id", *COLUMNS])
    assert problems_of(holdout, table, images=tmp_path) == (
        f"{table}: row1 (sample00): {tmp_path}/a.png: the file is empty (0 bytes). Fetch it again.",
    )


def test_a_folder_of_files_that_is_not_there_is_one_sentence(holdout, tmp_path):
    table = write_table(tmp_path / "rows.csv", cells(), ["id", *COLUMNS])
    found = problems_of(holdout, table, images=tmp_path / "nowhere")
    assert found == (
        f"{table}: row1 (sample00): picture: there is no such file "
        f"({tmp_path / 'nowhere' / '00.png'}). Check its name and the folder that it is relative to. "
        "Alike: 35 more rows (row2, row3, row4, ...).",
    )


def test_what_is_no_run_is_said(tmp_path):
    with pytest.raises(DataError) as error:
        open_run(tmp_path, toy_images.make_registry(), tmp_path)
    assert error.value.problems == (
        f"{tmp_path}: no finished run (no model/index.json). Give one, such as runs/NAME/latest.",
    )


# what is broken


@pytest.fixture
def copied(holdout, tmp_path) -> Path:
    """A copy of the run's folder, to be broken."""
    return Path(shutil.copytree(holdout.folder, tmp_path / "run"))


def open_broken(folder: Path, registry: Any = None) -> tuple[str, ...]:
    with pytest.raises(IntegrityError) as error:
        open_run(folder, registry or toy_images.make_registry(), folder)
    return error.value.problems


def test_every_artefact_that_is_not_what_the_run_wrote_is_named(copied):
    first, second, *_ = json.loads((copied / "model" / "index.json").read_text())["sha256"]
    flipped, gone = (copied / "model" / f"{address}.safetensors" for address in (first, second))
    data = bytearray(flipped.read_bytes())
    data[-1] ^= 1
    flipped.write_bytes(data)
    gone.unlink()
    assert open_broken(copied) == (
        f"{flipped}: not what the run wrote (sha256 differs). Run the recipe again.",
        f"{gone}: not there. The run folder is not whole; run the recipe again.",
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"format": 4', '"format": 1'),
        ('"yes"', '"yet"'),
        ('"seed": 0', '"seed": 1'),
        ('"is_learned": true', '"is_learned": false'),
        ('"digest"', '"digits"'),
    ],
)
def test_an_index_that_was_changed_is_noticed(old, new, copied):
    path = copied / "model" / "index.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    assert open_broken(copied) == (
        f"{copied}: the run folder is broken (model/index.json is not what the run wrote). "
        "Run the recipe again.",
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model/index.json", "{"),
        ("model/index.json", "[]"),
        ("report.json", None),
        ("report.json", '{"models": {}}'),
        ("report.json", "[1]"),
        ("resolved.yaml", None),
    ],
)
def test_a_folder_that_is_not_whole_is_one_sentence(name, content, copied):
    if content is None:
        (copied / name).unlink()
    else:
        (copied / name).write_text(content)
    (problem,) = open_broken(copied)
    assert problem.startswith(f"{copied}: the run folder is broken (")
    assert problem.endswith("). Run the recipe again.")


def test_an_index_of_another_format_is_refused(copied):
    path = copied / "model" / "index.json"
    index = json.loads(path.read_text())
    del index["digest"]
    index["format"] = 1
    path.write_text(json.dumps({**index, "digest": address_of(index)}))
    assert open_broken(copied) == (
        f"{copied}: the run folder is broken (model/index.json has format 1, not 4). Run the recipe again.",
    )


def registry_with(name: str, *cards: Any) -> Any:
    class Plugin:
        __file__ = __file__

        @staticmethod
        @hookimpl
        def fusionkit_components() -> Sequence[Any]:
            return cards

    registry = toy_images.make_registry()
    registry.add(name, Plugin)
    return registry


def source_card(source: Any, name: str = "toy_wide") -> Any:
    return toy_images.SourceSpec(
        name=name,
        summary="As toy_pictures.",
        source="ours",
        config=toy_images.PictureSourceConfig,
        build=source,
    )


def test_columns_that_are_declared_otherwise_now_would_move_codes_and_are_refused(tmp_path):
    schema = dict(toy_images.SCHEMA)

    class Wide(toy_images.PictureSource):
        pass

    Wide.schema = schema
    registry = registry_with("wide", source_card(Wide))
    text = toy_images.RECIPE.replace("use: toy_pictures", "use: toy_wide")
    result = run_toy(tmp_path, "evaluation.modalities_alone=false", text=text, registry=registry)
    open_run(result.folder, registry, tmp_path)
    schema["number"] = ColumnSpec(kind="numeric", description="Other words for people.")
    open_run(result.folder, registry, tmp_path)
    schema["word"] = ColumnSpec(kind="category", values=("c", "b", "a"))
    assert open_broken(result.folder, registry) == (
        f"{result.folder}: columns are declared otherwise than in the run (word). "
        "Give the schema file, or the version of the plugin, that the run had.",
    )


WEIGHT = 1.0


def build_weighted(config: Any, input_dim: int) -> Any:
    import torch

    raiser = toys.build_toy_repeat(toys.ToyRepeatConfig(), input_dim)
    # stands for weights that come from a file
    raiser.weight = torch.nn.Parameter(torch.tensor(WEIGHT))
    return raiser


@pytest.mark.parametrize(
    "options",
    [{"learns": "nothing"}, {"learns": "gradient", "is_pretrained": lambda config: True}],
    ids=["fixed", "pretrained"],
)
def test_other_weights_in_a_part_that_never_learned_are_refused(tmp_path, monkeypatch, options):
    card = RaiserSpec(
        name="toy_weighted", summary="Has weights.", source="ours", build=build_weighted, **options
    )
    registry = registry_with("weighted", card)
    text = toy_images.RECIPE.replace("{use: toy_denoise, width: 5}", "{use: toy_weighted}")
    overrides = ["evaluation.modalities_alone=false", "stages.raise_record=null"]
    result = run_toy(tmp_path, *overrides, text=text, registry=registry)
    table = write_table(tmp_path / "rows.csv", cells()[:2], ["id", *COLUMNS])

    def again() -> Answers:
        learned = open_run(result.folder, registry, tmp_path)
        manifest = read_rows(learned, table, pictures_of(result), "id")
        return predict(learned, manifest, Places(tmp_path, tmp_path / "store", tmp_path), quiet)

    assert {row.model for row in again().rows} == {"fused"}
    monkeypatch.setattr("test_predict.WEIGHT", 2.0)
    with pytest.raises(IntegrityError) as error:
        again()
    assert error.value.problems == (
        "record.raiser: its initial weights are not those of the run. Give the same weights file.",
    )


def test_a_run_whose_plugins_are_not_loaded_names_them_before_what_its_recipe_lacks(holdout):
    from fusionkit.registry import Registry

    with pytest.raises(PluginError) as caught:
        open_run(holdout.folder, Registry(), Path())
    lost = [problem for problem in caught.value.problems if "which is not loaded now" in problem]
    assert lost == list(caught.value.problems[: len(lost)])
    assert "the run had the plugin 'toy_images', which" in "".join(lost)
    assert not any("of that name ('toy_" in problem for problem in caught.value.problems)


@pytest.mark.parametrize("name", ["resolved.yaml", "report.json"])
def test_a_file_that_was_edited_is_noticed(name, copied):
    path = copied / name
    path.write_text(path.read_text() + "\n")
    assert open_broken(copied) == (
        f"{copied}: the run folder is broken ({name} is not what the run wrote). Run the recipe again.",
    )
