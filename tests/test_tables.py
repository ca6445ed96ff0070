"""Tables: what cells mean, what is refused and in which words, and how records become numbers."""

from __future__ import annotations

import hashlib
import math

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusionkit.data.manifest import Manifest
from fusionkit.data.tables import TabularInput, bad_cells, parse_cell, read_table
from fusionkit.errors import DataError, RecipeError
from fusionkit.interfaces import Cut
from fusionkit.specs import ColumnSpec

AGE = ColumnSpec(kind="numeric", range=(0, 120), unit="years", missing=("", "not available"))
SIZE = ColumnSpec(kind="ordinal", values=("small", "medium", "large"))
SIGNS = ColumnSpec(kind="multi", values=("no", "redness", "palpable"), missing=("", "unknown"))
COLUMNS = {"Age": AGE, "Size": SIZE, "Signs": SIGNS}
RECORD = (Cut("record"),)


def cells(age=None, size=None, signs=None):
    return {"Age": age, "Size": size, "Signs": signs}


def numbers(record, **options) -> list[float]:
    return TabularInput(COLUMNS, **options).load(record, RECORD)[0].tolist()


# cells


@pytest.mark.parametrize(
    ("spec", "text", "value"),
    [
        (AGE, "57", 57.0),
        (AGE, " 57.5 ", 57.5),
        (AGE, "1e2", 100.0),
        (AGE, ".5", 0.5),
        (AGE, "120", 120.0),
        (AGE, None, None),
        (AGE, "", None),
        (AGE, "not available", None),
        (SIZE, "large", 2),
        (SIZE, "  ", None),
        (SIGNS, "palpable & redness", (1, 2)),
        (SIGNS, "redness&redness", (1,)),
        (SIGNS, "unknown", None),
    ],
)
def test_a_cell_means(spec, text, value):
    assert parse_cell("x", spec, text) == value


@pytest.mark.parametrize(
    "text", ["nan", "NaN", "inf", "-Infinity", "1_000", "1,5", "0x10", "abc", "1e39", "\u0661", "1e999"]
)
def test_only_finite_plain_numbers_are_numbers(text):
    with pytest.raises(DataError) as error:
        parse_cell("Age", AGE, text)
    assert str(error.value) == f"Age: not a finite number ('{text}'). Missing is written: 'not available'."


@pytest.mark.parametrize(
    ("name", "spec", "text", "message"),
    [
        ("Age", AGE, "-1", "Age: outside its range ('-1'). Allowed: 0 to 120 years."),
        (
            "Weight",
            ColumnSpec(kind="numeric"),
            "heavy",
            "Weight: not a finite number ('heavy'). Missing is written: nothing but an empty cell.",
        ),
        (
            "Size",
            SIZE,
            "smal",
            "Size: not an allowed value ('smal'). Did you mean 'small'? Known: large, medium, small.",
        ),
        ("Size", SIZE, "1", "Size: not an allowed value ('1'). Known: large, medium, small."),
        (
            "Signs",
            SIGNS,
            "no&rednes",
            "Signs: not an allowed value ('rednes'). Did you mean 'redness'? Known: no, palpable, redness.",
        ),
        ("Signs", SIGNS, "no&", "Signs: not an allowed value (''). Known: no, palpable, redness."),
    ],
)
def test_a_cell_outside_its_declaration_is_an_error(name, spec, text, message):
    with pytest.raises(DataError) as error:
        parse_cell(name, spec, text)
    assert str(error.value) == message


# records


def test_a_record_becomes_numbers():
    spec = TabularInput(COLUMNS)
    assert spec.output_dim == 5
    assert spec.columns == ("Age", "Size", "Signs")
    assert spec.feature_names == ("Age", "Size", "Signs=no", "Signs=redness", "Signs=palpable")
    assert spec.sources == ("Age", "Size", "Signs", "Signs", "Signs")
    assert spec.is_code == (False, True, False, False, False)
    tensor = spec.load(cells("57", "large", "palpable&redness"), RECORD)[0]
    assert tensor.dtype == torch.float32
    assert tensor.tolist() == [57.0, 2.0, 0.0, 1.0, 1.0]


def test_missing_cells_become_nan_a_multi_column_wholly():
    values = numbers(cells("not available", "small", None))
    assert [math.isnan(value) for value in values] == [True, False, True, True, True]


def test_every_problem_of_a_record_is_named():
    with pytest.raises(DataError) as error:
        numbers(cells("old", "huge", "no"))
    assert error.value.problems == (
        "Age: not a finite number ('old'). Missing is written: 'not available'.",
        "Size: not an allowed value ('huge'). Known: large, medium, small.",
    )


def test_a_batch_is_stacked():
    spec = TabularInput(COLUMNS)
    items = [spec.load(cells("1", "small", "no"), RECORD)[0], spec.load(cells("2", "large", "no"), RECORD)[0]]
    assert spec.collate(items).tolist() == [[1, 0, 1, 0, 0], [2, 2, 1, 0, 0]]


def test_a_record_without_any_cell_is_absent():
    spec = TabularInput(COLUMNS)
    assert spec.content_key(cells()) is None
    assert spec.content_key(cells("not available", "", "unknown")) is None


def test_the_content_is_what_the_cells_mean_not_how_they_are_written():
    spec = TabularInput(COLUMNS)
    key = spec.content_key(cells("57", "small", "palpable&redness"))
    assert key == spec.content_key(cells("57.0", "small", "redness & palpable"))
    assert key == hashlib.sha256(b'{"Age":57.0,"Signs":[1,2],"Size":0}').digest()
    others = [
        cells("58", "small", "palpable&redness"),
        cells("57", "small"),
        cells("57", None, "palpable&redness"),
    ]
    assert len({key, *map(spec.content_key, others)}) == 4


def test_columns_that_are_no_numbers_are_refused_together():
    with pytest.raises(RecipeError) as error:
        TabularInput({"image": ColumnSpec(kind="file"), "Age": AGE, "note": ColumnSpec(kind="text")})
    assert error.value.problems == (
        "columns: image is no number (kind: file). Known: numeric, ordinal, category, binary, multi.",
        "columns: note is no number (kind: text). Known: numeric, ordinal, category, binary, multi.",
    )
    with pytest.raises(RecipeError, match="a record has at least one column"):
        TabularInput({})


def test_identity_holds_the_declaration_but_not_the_words_for_people():
    plain = TabularInput(COLUMNS).identity()
    described = COLUMNS | {"Age": AGE.model_copy(update={"unit": "y", "description": "age"})}
    assert TabularInput(described).identity() == plain
    assert TabularInput(COLUMNS | {"Age": AGE.model_copy(update={"range": None})}).identity() != plain
    assert TabularInput(COLUMNS, 0.1).identity() != plain
    assert TabularInput(dict(reversed(COLUMNS.items()))).identity() != plain
    assert plain["version"] == 1


# cell dropout


def test_dropout_blanks_whole_cells_by_seed_at_its_rate():
    spec = TabularInput(COLUMNS, cell_dropout=0.3)
    record = cells("57", "small", "no")
    rows = torch.stack(spec.load(record, [Cut("record", seed) for seed in range(3000)]))
    assert torch.equal(
        rows.isnan(), torch.stack(spec.load(record, [Cut("record", s) for s in range(3000)])).isnan()
    )
    blank = rows.isnan()
    assert torch.equal(blank[:, 2], blank[:, 3])
    assert torch.equal(blank[:, 2], blank[:, 4])
    rates = blank[:, :3].float().mean(0)
    assert (rates - 0.3).abs().max() < 0.035  # 4 standard errors
    both = (blank[:, 0] & blank[:, 1]).float().mean()
    assert abs(both - 0.09) < 0.02


def test_dropout_leaves_evaluation_alone():
    record = cells("57", "small", "no")
    assert numbers(record, cell_dropout=0.9) == [57, 0, 1, 0, 0]
    assert TabularInput(COLUMNS, 0.9).is_random(training=True) is True
    assert TabularInput(COLUMNS, 0.9).is_random(training=False) is False
    assert TabularInput(COLUMNS).is_random(training=True) is False
    assert TabularInput(COLUMNS).views(training=True) == ("record",)


def test_the_memo_forgets_but_never_errs(monkeypatch):
    monkeypatch.setattr("fusionkit.data.tables._MEMO_ROWS", 2)
    spec = TabularInput(COLUMNS)
    for age in ("1", "2", "3", "1", "3"):
        assert spec.load(cells(age), RECORD)[0][0] == float(age)
        assert len(spec._memo) <= 2


@given(st.lists(st.sampled_from(SIGNS.values), min_size=1, max_size=6))
def test_multi_columns_are_multi_hot(chosen):
    values = numbers(cells(signs="&".join(chosen)))[2:]
    assert values == [float(value in chosen) for value in SIGNS.values]


@given(st.floats(0, 120, width=32))
def test_numbers_survive(value):
    assert numbers(cells(age=repr(value)))[0] == value


# the whole table


def manifest(**columns) -> Manifest:
    frame = pl.DataFrame(columns)
    n = len(frame)
    return Manifest(
        samples=[f"s{i}" for i in range(n)],
        subjects=[f"p{i // 2}" for i in range(n)],
        outcomes=[None] * n,
        cells=frame,
        schema=COLUMNS,
        classes=("a", "b"),
        root=None,
    )


def test_bad_cells_are_named_by_sample_column_and_value():
    data = manifest(Age=["5", "500", None, "x"], Size=["small", "small", "tiny", None])
    found, n_bad = bad_cells(data, {"Age": AGE, "Size": SIZE}, 20)
    assert ([row for row, _ in found], n_bad) == ([1, 3, 2], 3)
    assert [sentence for _, sentence in found] == [
        "sample s1 (subject p0): Age: outside its range ('500'). Allowed: 0 to 120 years.",
        "sample s3 (subject p1): Age: not a finite number ('x'). Missing is written: 'not available'.",
        "sample s2 (subject p1): Size: not an allowed value ('tiny'). Known: large, medium, small.",
    ]


def test_good_cells_and_files_are_no_bad_cells():
    data = manifest(Age=["5", "not available", None], image=["a", "b", "c"])
    assert bad_cells(data, {"Age": AGE, "image": ColumnSpec(kind="file")}, 20) == ([], 0)


def test_of_many_bad_cells_the_first_are_named_and_all_are_counted():
    data = manifest(Age=["x"] * 30, Size=["y"] * 30)
    found, n_bad = bad_cells(data, {"Age": AGE, "Size": SIZE}, 20)
    assert ([row for row, _ in found], n_bad) == (list(range(20)), 60)


# files


def write(tmp_path, text, name="rows.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return path


def refusal(path, **options) -> tuple[str, ...]:
    with pytest.raises(DataError) as error:
        read_table(path, **options)
    return error.value.problems


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_csv_is_read_as_text(tmp_path, delimiter, newline, mark):
    lines = [["id", "note", "n"], ["1", '"a, b; c"', " 05 "], ["2", '""', ""]]
    text = mark + newline.join(delimiter.join(line) for line in lines) + newline
    frame = read_table(write(tmp_path, text))
    assert frame.to_dict(as_series=False) == {"id": ["1", "2"], "note": ["a, b; c", None], "n": ["05", None]}
    assert set(frame.dtypes) == {pl.String}


def test_cells_may_hold_line_breaks_and_quotes(tmp_path):
    frame = read_table(write(tmp_path, 'id,note\n1,"one\ntwo ""three"""\n\n2,x\n'))
    assert frame["note"].to_list() == ['one\ntwo "three"', "x"]


def test_one_column_and_no_rows_are_a_table(tmp_path):
    assert read_table(write(tmp_path, "id\n1\n"))["id"].to_list() == ["1"]
    empty = read_table(write(tmp_path, "id,note\n"))
    assert empty.columns == ["id", "note"]
    assert len(empty) == 0


def test_latin_1_is_read_only_when_asked_for(tmp_path):
    path = write(tmp_path, "id,name\n1,Müller\n", encoding="latin-1")
    assert refusal(path) == (
        f"{path}: line 2: not UTF-8 (byte 0xfc). Save the table as UTF-8, or say that it is latin-1 "
        "(the source's option `encoding`; in predict, --encoding).",
    )
    assert read_table(path, encoding="latin-1")["name"].to_list() == ["Müller"]


def test_ragged_lines_are_named(tmp_path):
    path = write(tmp_path, 'id,note\n1,a\n2,b,c\n3,"x\ny"\n4\n')
    assert refusal(path) == (
        f"{path}: line 3: 3 cells under a header of 2. Quote cells that contain ','.",
        f"{path}: line 6: 1 cell under a header of 2. Quote cells that contain ','.",
    )


def test_many_ragged_lines_are_counted(tmp_path):
    path = write(tmp_path, "id,note\n" + "1\n" * 25)
    problems = refusal(path)
    assert len(problems) == 21
    assert problems[-1] == f"{path}: and 5 more ragged lines."


@pytest.mark.parametrize("text", ["", "\n", "\ufeff"])
def test_an_empty_file_is_no_table(tmp_path, text):
    path = write(tmp_path, text)
    assert refusal(path) == (f"{path}: the table is empty. Its first line names the columns.",)


def test_columns_need_names_of_their_own(tmp_path):
    path = write(tmp_path, ",a,b,a\n1,2,3,4\n")
    assert refusal(path) == (
        f"{path}: column 1 has no name. Name it.",
        f"{path}: column 'a' appears 2 times. Rename or remove all but one.",
    )


def test_an_open_quote_is_an_error(tmp_path):
    path = write(tmp_path, 'id,note\n1,"a\n2,b\n')
    assert refusal(path) == (f"{path}: line 3: not CSV (unexpected end of data). Check its quotes.",)


def test_other_files_are_no_tables(tmp_path):
    assert refusal(tmp_path / "no.csv") == (
        f"{tmp_path / 'no.csv'}: there is no such table. Check its name and the folder of the data.",
    )
    path = write(tmp_path, "x", "rows.xlsx")
    assert refusal(path) == (
        f"{path}: not a kind of table that is read ('.xlsx'). Known: .csv, .tsv, .txt, .parquet.",
    )


def test_parquet_is_read_as_text(tmp_path):
    path = tmp_path / "rows.parquet"
    columns = {
        "id": [1, 2, 3],
        "x": [0.5, float("nan"), None],
        "ok": [True, None, False],
        "t": [" a", "", None],
    }
    pl.DataFrame(columns).write_parquet(path)
    assert read_table(path).to_dict(as_series=False) == {
        "id": ["1", "2", "3"],
        "x": ["0.5", None, None],
        "ok": ["true", None, "false"],
        "t": ["a", None, None],
    }


def test_a_broken_or_nested_parquet_file_is_refused(tmp_path):
    path = write(tmp_path, "PAR1 no", "rows.parquet")
    (problem,) = refusal(path)
    assert problem.startswith(f"{path}: not a whole Parquet file (")
    pl.DataFrame({"a": [[1, 2]], "b": ["x"]}).write_parquet(path)
    assert refusal(path) == (f"{path}: cells that are no single value (columns: a). Write them as text.",)


@pytest.mark.slow
def test_a_million_rows_are_read_and_checked(tmp_path):
    path = tmp_path / "rows.csv"
    with path.open("w") as file:
        file.write("Age,Size,Signs,id,x\n")
        file.writelines(f"{i % 100}.5,small,no&redness,{i},{i}\n" for i in range(1_000_000))
    frame = read_table(path)
    assert len(frame) == 1_000_000
    data = manifest(**{name: frame[name] for name in frame.columns})
    assert bad_cells(data, COLUMNS | {"x": ColumnSpec(kind="numeric")}, 20) == ([], 0)


def test_a_first_line_that_is_no_csv_is_an_error(tmp_path):
    path = write(tmp_path, "a" * 200_000 + ",b\n1,2\n")
    assert refusal(path) == (
        f"{path}: line 1: not CSV (field larger than field limit (131072)). Check its quotes.",
    )
