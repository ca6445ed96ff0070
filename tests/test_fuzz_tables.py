"""Generated tables: rows up to splits, or predictions, or one clear error each; and what was found."""

import csv
import io
from pathlib import Path

import polars as pl
import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st
from strategies import answer, bounded, bounded_memory

from fusionkit import ColumnSpec, DataError, RecipeError
from fusionkit.data import parquet
from fusionkit.data.splits import make_folds
from fusionkit.data.tables import bad_cells, parse_cell, read_table
from fusionkit.errors import ResourceError
from fusionkit.learned import open_run
from fusionkit.predict import predict, read_rows
from fusionkit.prepare import Places, check_manifest, outcomes_of, read_manifest
from fusionkit.recipe.load import load_text
from fusionkit.run import run
from fusionkit.task import Classification

REGISTRY = strategies.make_registry()
SECONDS = 3
DATA = 4
SUFFIXES = [".csv"] * 8 + [".tsv", ".txt", ".CSV", ".dat"]
OPTIONS = [
    [],
    [],
    ["source.encoding=latin-1"],
    ["source.subject_pattern='p([0-9]+)'"],
    ["source.sample=picture"],
    ["split={scheme: column, column: side, train: [left], test: [right], validation: [x]}"],
    ["source.drop={side: [left, '']}"],
]
csv_tables = st.tuples(strategies.csv_files(), st.sampled_from(SUFFIXES), st.sampled_from(OPTIONS))
parquet_tables = st.tuples(strategies.parquet_files(), st.just(".parquet"), st.sampled_from(OPTIONS))


def quiet(name, data):
    pass


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    for row in range(24):
        (folder / f"{row:02}.png").touch()
    (folder / "rows.csv").write_text(strategies.SMALL_TABLE)
    return Places(folder, folder / "store", folder / "runs")


@pytest.fixture(scope="module")
def learned(places):
    loaded = load_text(strategies.SMALL, REGISTRY, data_root=places.data)
    return open_run(run(loaded, REGISTRY, places, quiet).folder, REGISTRY, places.data)


def split_rows(path, options, places):
    """Reads a table and splits it, as a run does before it trains."""
    text = strategies.TABLE_RECIPE.replace("rows.csv", path.name)
    loaded = load_text(text, REGISTRY, overrides=options, data_root=places.data)
    manifest = read_manifest(loaded, places, 1)
    check_manifest(loaded, manifest)
    task = Classification(manifest.classes)
    outcomes = outcomes_of("unanimous", manifest, task)
    known = {subject: task.classes[code] for subject, code in outcomes.items() if code >= 0}
    return manifest, make_folds(loaded.recipe.split, manifest, known, 0)


def check_table_file(table, places, capfd):
    """Whatever is split is whole: every row in one set of each fold."""
    data, suffix, options = table
    path = places.data / f"table{suffix}"
    path.write_bytes(data)
    with bounded_memory():
        found = answer(lambda: split_rows(path, options, places), DATA)
    assert capfd.readouterr() == ("", "")
    if isinstance(found, DataError):
        return
    manifest, folds = found
    for fold in folds:
        rows = [*fold.train, *fold.validation, *fold.test, *fold.left_out]
        assert sorted(rows) == list(range(len(manifest)))


def check_prediction(table, places, learned, capfd):
    """Whatever is predicted has one line per row, with probabilities that sum to one or are blank."""
    data, suffix, _ = table
    path = places.data / f"new{suffix}"
    path.write_bytes(data)

    def predicted():
        manifest = read_rows(learned, path, None, None)
        return len(manifest), predict(learned, manifest, places, quiet)

    found = answer(predicted, DATA)
    assert capfd.readouterr() == ("", "")
    if isinstance(found, DataError):
        return
    n_rows, answers = found
    lines = list(csv.DictReader(io.StringIO(answers.to_csv())))
    assert len(lines) == n_rows
    for line in lines:
        values = [line["probability_good"], line["probability_bad"]]
        assert values == ["", ""] or abs(sum(map(float, values)) - 1) < 1e-6


@bounded(60)
@given(table=csv_tables)
def test_any_csv_is_split_or_is_an_error(table, places, capfd):
    check_table_file(table, places, capfd)


@bounded(8)
@given(table=parquet_tables)
def test_any_parquet_is_split_or_is_an_error(table, places, capfd):
    check_table_file(table, places, capfd)


@bounded(40)
@given(table=csv_tables)
def test_any_table_is_predicted_or_is_an_error(table, places, learned, capfd):
    check_prediction(table, places, learned, capfd)


@pytest.mark.slow
@bounded(400, SECONDS)
@given(table=csv_tables)
def test_four_hundred_csvs_are_split_or_are_errors(table, places, capfd):
    check_table_file(table, places, capfd)


@pytest.mark.slow
@bounded(100)  # a process each, whose start takes its time on a busy machine
@given(table=parquet_tables)
def test_a_hundred_parquets_are_split_or_are_errors(table, places, capfd):
    check_table_file(table, places, capfd)


@pytest.mark.slow
@bounded(300, SECONDS)
@given(table=csv_tables)
def test_three_hundred_tables_are_predicted_or_are_errors(table, places, learned, capfd):
    check_prediction(table, places, learned, capfd)


# what these tests found


def refusal(path, **options):
    with pytest.raises(DataError) as error:
        read_table(path, **options)
    return error.value.problems


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
@pytest.mark.parametrize("written", ["utf-16", "utf-32"])
def test_utf_16_is_said_to_be_so(tmp_path, encoding, written):
    path = tmp_path / "rows.csv"
    path.write_text("id,age\n1,2\n", encoding=written)
    assert refusal(path, encoding=encoding) == (
        f"{path}: UTF-16 or UTF-32 text, by its first bytes. Save the table as UTF-8.",
    )


def test_a_nul_is_no_text(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"id,age\n1,\x00\n")
    assert refusal(path, encoding="latin-1") == (
        f"{path}: line 2: a NUL character, so this is no text. Save the table as UTF-8.",
    )


def test_a_parquet_file_has_names_like_any_table(tmp_path):
    path = tmp_path / "rows.parquet"
    pl.DataFrame({" age ": ["1"]}).write_parquet(path)
    assert read_table(path).columns == ["age"]
    pl.DataFrame({"age": ["1"], " age": ["2"], " ": ["3"]}).write_parquet(path)
    assert refusal(path) == (
        f"{path}: column 3 has no name. Name it.",
        f"{path}: column 'age' appears 2 times. Rename or remove all but one.",
    )


def test_a_duration_is_no_text(tmp_path):
    path = tmp_path / "rows.parquet"
    pl.DataFrame({"age": pl.Series([1], dtype=pl.Duration("ms"))}).write_parquet(path)
    assert refusal(path) == (f"{path}: cells that are no single value (columns: age). Write them as text.",)


@pytest.mark.parametrize("at", [37, 60, -6, -200])
def test_a_broken_parquet_file_is_an_error_and_nothing_more(at, tmp_path, capfd):
    path = tmp_path / "rows.parquet"
    pl.DataFrame({"a": ["1", "2", "3"]}).write_parquet(path, compression="uncompressed")
    whole = bytearray(path.read_bytes())
    whole[at] ^= 16  # at 37, polars 2.1 panics
    path.write_bytes(whole)
    found = answer(lambda: read_table(path), DATA)
    if isinstance(found, DataError):
        (problem,) = found.problems
        assert problem.startswith(f"{path}: not a whole Parquet file (")
        assert problem.endswith("). Write it again.")
    assert capfd.readouterr() == ("", "")


def test_a_parquet_file_that_ends_who_reads_it_is_an_error(capfd):
    path = Path(__file__).parent / "bad_tables" / "asks_for_2_eib.parquet"
    (problem,) = refusal(path)
    assert problem.startswith(f"{path}: not a whole Parquet file (")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("ended", "error", "sentence"),
    [
        ("abort()", DataError, "not a whole Parquet file (reading it ends in SIGABRT). Write it again."),
        (
            "kill(os.getpid(), 9)",
            ResourceError,
            "reading it was killed, as happens where memory is full. Split the table.",
        ),
    ],
)
def test_how_the_trial_ends_is_said(ended, error, sentence, tmp_path, monkeypatch):
    path = tmp_path / "rows.parquet"
    pl.DataFrame({"a": ["1"]}).write_parquet(path)
    monkeypatch.setattr(parquet, "_TRIAL", f"import os; os.{ended}")
    with pytest.raises(error) as caught:
        read_table(path)
    assert str(caught.value) == f"{path}: {sentence}"


def test_a_column_of_names_taken_for_the_outcome_is_answered_in_short(places):
    lines = [f"p{row},00.png,1,left,red,name {row}" for row in range(20_000)]
    (places.data / "table.csv").write_text("\n".join(["patient,picture,age,side,signs,outcome", *lines]))
    with pytest.raises(DataError) as error:
        split_rows(places.data / "table.csv", [], places)
    assert len(error.value.problems) == 21
    assert error.value.problems[0] == (
        "table.csv: outcome: 'name 0' is no class (1 sample: row1). "
        "Name it under `classes`, or leave its rows out with `drop`. Known: bad, good."
    )
    assert error.value.problems[-1] == "table.csv: outcome: and 19980 more texts that are no class."


def test_a_column_of_names_taken_for_a_category_is_answered_in_short(places):
    lines = [f"p{row},00.png,1,{row % 15000},red,bad" for row in range(20_000)]
    (places.data / "table.csv").write_text("\n".join(["patient,picture,age,side,signs,outcome", *lines]))
    with pytest.raises(DataError) as error:
        split_rows(places.data / "table.csv", [], places)
    assert error.value.problems == (
        "sample row1 (subject p0): side: not an allowed value ('0'). Known: left, right. "
        "Alike: 999 more rows (row2, row3, row4, ...).",
        "and 19000 more cells.",
    )


def test_every_shown_cell_has_its_reason():
    cells = pl.DataFrame({"side": [f"x{row % 30}" for row in range(60)]})
    manifest = strategies.manifest_of(cells)
    found, n_bad = bad_cells(manifest, {"side": ColumnSpec(kind="binary", values=("left", "right"))}, 20)
    assert [problem.split("'")[1] for _, problem in found] == [f"x{row}" for row in range(20)]
    assert n_bad == 60


def test_a_huge_cell_is_shortened():
    with pytest.raises(DataError) as error:
        parse_cell("age", ColumnSpec(kind="numeric"), "x" * 100_000)
    assert str(error.value) == (
        f"age: not a finite number ('{'x' * 57}...'). Missing is written: nothing but an empty cell."
    )


@pytest.mark.parametrize("pattern", ["a{99999999999999999999}", "(" * 5000])
def test_a_pattern_that_no_machine_can_read_is_a_recipe_error(pattern, places):
    with pytest.raises(RecipeError) as error:
        load_text(
            strategies.SMALL,
            REGISTRY,
            name="r.yaml",
            overrides=[f"source.subject_pattern='{pattern}'"],
            data_root=places.data,
        )
    (problem,) = error.value.problems
    assert "source: `subject_pattern` is no regular expression (" in problem
