"""The source `manifest`: what a table becomes, and what it is told in which words."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from pydantic import ValidationError

from fusionkit import ColumnSpec, DataError, Manifest, RecipeError, SourceContext, read_table
from fusionkit_manifest import ManifestOptions, fusionkit_components
from fusionkit_manifest.schema_file import read_schema

TABLE = """id,patient,file,age,diagnosis,final,side
a,P1-x,a.png,50,benign lesion,benign lesion,left
b,P1-y,b.png,51,cancer,cancer,right
c,P2,c.png,unknown,carcinoma,cancer,left
d,P3,,70,,,left
e,P4,e.png,71,normal,normal,left
"""
COLUMNS = {"file": ColumnSpec(kind="file"), "age": ColumnSpec(kind="numeric", missing=("", "unknown"))}
CLASSES = {"benign": "benign lesion", "malignant": ["cancer", "carcinoma"]}


def options(**changes) -> ManifestOptions:
    given = {"table": "sub/rows.csv", "subject": "patient", "outcome": "diagnosis", "classes": CLASSES}
    given |= {"columns": COLUMNS, "drop": {"diagnosis": "normal"}, "sample": "id"}
    given |= changes
    return ManifestOptions(**{name: value for name, value in given.items() if value is not ...})


def read(root: Path, text: str = TABLE, **changes) -> Manifest:
    (root / "sub").mkdir(exist_ok=True)
    (root / "sub" / "rows.csv").write_text(text)
    (card,) = fusionkit_components()
    return card.build(options(**changes)).read(SourceContext(root, root / "cache"))


def refusal(root: Path, text: str = TABLE, **changes) -> tuple[str, ...]:
    with pytest.raises(DataError) as error:
        read(root, text, **changes)
    return error.value.problems


def problems(root: Path, text: str = TABLE, **changes) -> tuple[str, ...]:
    return tuple(read(root, text, **changes).problems)


# what a table becomes


def test_a_table_becomes_a_manifest(tmp_path):
    data = read(tmp_path, subject_outcome="final", subject_pattern="P[0-9]+")
    assert data.samples == ["a", "b", "c", "d"]
    assert data.subjects == ["P1", "P1", "P2", "P3"]
    assert data.outcomes == ["benign", "malignant", "malignant", None]
    assert data.subject_outcomes == ["benign", "malignant", "malignant", None]
    assert data.classes == ("benign", "malignant")
    assert data.schema == COLUMNS
    assert data.dropped == {"diagnosis=normal": 1}
    assert data.is_simulated is False
    assert data.cells.columns == ["id", "patient", "file", "age", "diagnosis", "final", "side"]
    assert data.cells_of(2, ["file", "age"]) == {"file": tmp_path / "sub" / "c.png", "age": None}
    assert data.cells_of(3, ["file", "age"]) == {"file": None, "age": "70"}


def test_images_may_lie_elsewhere(tmp_path):
    assert read(tmp_path, images="pictures").cells_of(0, ["file"]) == {
        "file": tmp_path / "pictures" / "a.png"
    }


def test_rows_are_numbered_where_they_have_no_id(tmp_path):
    data = read(tmp_path, sample=None, drop={"diagnosis": ["normal", "benign lesion"]})
    assert data.samples == ["row2", "row3", "row4"]


def test_a_group_of_the_pattern_is_the_subject(tmp_path):
    assert read(tmp_path, subject_pattern="P([0-9]+)").subjects == ["1", "1", "2", "3"]


def test_rows_to_predict_have_no_outcome(tmp_path):
    data = read(tmp_path, "patient,file,age\nP1,a.png,3\n", outcome=None, drop={}, sample=None)
    assert data.outcomes == [None]
    assert data.subject_outcomes is None


def test_the_first_reason_to_drop_counts(tmp_path):
    drop = {"diagnosis": ["normal", "absent", ""], "side": "left"}
    data = read(tmp_path, drop=drop)
    assert data.samples == ["b"]
    assert data.dropped == {"diagnosis=normal": 1, "diagnosis=absent": 0, "diagnosis=": 1, "side=left": 2}


def test_an_empty_cell_is_dropped_by_the_empty_text(tmp_path):
    assert read(tmp_path, drop={"diagnosis": ["normal", ""]}).outcomes == ["benign", "malignant", "malignant"]


def test_numbers_in_a_recipe_are_texts_of_cells():
    config = options(classes={"negative": 0, "positive": [1, "2"]}, drop={"offset": 3})
    assert config.classes == {"negative": ("0",), "positive": ("1", "2")}
    assert config.drop == {"offset": ("3",)}


def test_latin_1_and_parquet(tmp_path):
    frame = pl.DataFrame({"patient": ["P1"], "file": ["a.png"], "age": [3], "diagnosis": ["cancer"]})
    frame.write_parquet(tmp_path / "rows.parquet")
    (card,) = fusionkit_components()
    source = card.build(options(table="rows.parquet", sample=None))
    assert source.read(SourceContext(tmp_path, tmp_path)).outcomes == ["malignant"]
    frame.with_columns(patient=pl.lit("Müller")).write_csv(tmp_path / "rows.csv")
    path = tmp_path / "rows.csv"
    path.write_bytes(path.read_text(encoding="utf-8").encode("latin-1"))
    source = card.build(options(table=str(path), sample=None, encoding="latin-1"))
    assert source.read(SourceContext(Path("nowhere"), tmp_path)).subjects == ["Müller"]


# what is wrong with a table


def test_every_absent_column_is_named(tmp_path):
    assert refusal(tmp_path, sample="idd", subject_outcome="finale", drop={"sid": "left"}) == (
        "rows.csv: sample: there is no column 'idd'. Did you mean 'id'? "
        "Known: age, diagnosis, file, final, id, patient, side.",
        "rows.csv: subject_outcome: there is no column 'finale'. Did you mean 'final'? "
        "Known: age, diagnosis, file, final, id, patient, side.",
        "rows.csv: drop: there is no column 'sid'. Did you mean 'side'? "
        "Known: age, diagnosis, file, final, id, patient, side.",
    )
    assert refusal(tmp_path, columns={"size": ColumnSpec(kind="numeric")}) == (
        "rows.csv: columns: there is no column 'size'. Did you mean 'side'? "
        "Known: age, diagnosis, file, final, id, patient, side.",
    )


def test_all_problems_of_the_rows_come_at_once(tmp_path):
    text = TABLE + "a,,f.png,3,cancre,cancer,left\n,P9,f.png,3,cancre,cancer,left\n"
    data = read(tmp_path, text, drop={})
    assert data.samples[-2:] == ["a", "row7"]
    assert data.subjects[-2:] == ["(none, row6)", "P9"]
    assert data.outcomes[-2:] == [None, None]
    assert problems(tmp_path, text, drop={}) == (
        "rows.csv: id: the sample's id is missing in 1 row. Fill it in.",
        "rows.csv: id: a sample's id is used twice (a). Make ids unique.",
        "rows.csv: patient: the subject is missing (1 sample: a). Fill it in.",
        "rows.csv: diagnosis: 'cancre' is no class (2 samples: a, (no id)). Name it under `classes`, "
        "or leave its rows out with `drop`. Did you mean 'cancer'? Known: benign lesion, cancer, carcinoma.",
        "rows.csv: diagnosis: 'normal' is no class (1 sample: e). Name it under `classes`, "
        "or leave its rows out with `drop`. Known: benign lesion, cancer, carcinoma.",
    )


def test_a_pattern_that_finds_nothing(tmp_path):
    assert problems(tmp_path, subject_pattern="P[1-2]") == (
        "rows.csv: patient: `subject_pattern` finds no subject (P3; 1 sample: d). "
        "Mend the pattern or the cells.",
    )


def test_long_lists_are_cut(tmp_path):
    text = "patient,file,age,diagnosis\n" + "P1,,3,odd\n" * 30
    (problem,) = problems(tmp_path, text, sample=None)
    assert "(30 samples: row1, row2, " in problem
    assert "row20 and 10 more)" in problem


def test_a_table_without_rows(tmp_path):
    assert refusal(tmp_path, drop={"side": ["left", "right"]}) == (
        "rows.csv: no row is left (5 dropped). Check the table and `drop`.",
    )


def test_checksums_are_read_for_the_audit_and_must_be_sha256(tmp_path):
    digest = "0123456789abcdefABCDEF" + "0" * 42
    sums = ["sum", digest, "", digest, "", ""]
    lines = [f"{line},{text}" for line, text in zip(TABLE.splitlines(), sums, strict=True)]
    text = "\n".join(lines) + "\n"
    assert read(tmp_path, text, sha256={"file": "sum"}).checksums == {"file": [digest, None, digest, None]}
    assert read(tmp_path, text).checksums == {}
    wrong = text.replace(f"left,{digest}", f"left,{digest[1:]}")
    assert read(tmp_path, wrong, sha256={"file": "sum"}).checksums == {"file": [None] * 4}
    assert problems(tmp_path, wrong, sha256={"file": "sum"}) == (
        "rows.csv: sum: not a sha256 (2 samples: a, c). "
        "A sha256 has 64 hexadecimal digits, as `sha256sum` prints them.",
    )
    assert refusal(tmp_path, text, sha256={"file": "sun"}) == (
        "rows.csv: sha256: there is no column 'sun'. Did you mean 'sum'? "
        "Known: age, diagnosis, file, final, id, patient, side, sum.",
    )


# what is wrong with the options


def test_a_checksum_belongs_to_a_file_column():
    (card,) = fusionkit_components()
    with pytest.raises(RecipeError) as error:
        card.build(options(sha256={"filee": "sum", "age": "sum"}))
    assert error.value.problems == (
        "sha256: there is no file column 'filee'. Did you mean 'file'? Known: file.",
        "sha256: there is no file column 'age'. Known: file.",
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"columns": {}}, "exactly one of `columns` and `schema_file` says what the columns hold"),
        ({"schema_file": "a.yaml"}, "exactly one of `columns` and `schema_file` says what the columns hold"),
        ({"classes": {"a": "x"}}, "`classes` names at least two classes"),
        ({"classes": {"a": "x", "b": ["y", "x"]}}, "`classes` gives 'x' to more than one class"),
        (
            {"subject_pattern": "("},
            "`subject_pattern` is no regular expression (missing ), unterminated subpattern",
        ),
        ({"classes": {"a": True, "b": "x"}}, "Input should be a valid string"),
        ({"subject": ...}, "Field required"),
    ],
)
def test_options_are_checked(changes, text):
    with pytest.raises(ValidationError) as error:
        options(**changes)
    assert text in str(error.value)


def test_an_outcome_cannot_be_an_input():
    (card,) = fusionkit_components()
    with pytest.raises(RecipeError) as error:
        card.build(options(columns=COLUMNS | {"diagnosis": ColumnSpec(kind="text")}))
    assert str(error.value) == (
        "columns: an outcome cannot be an input (diagnosis). Take it out of `columns`, or of the schema file."
    )


# the schema file


def schema(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "schema.yaml"
    path.write_text(text)
    return path


def test_a_schema_file_says_the_same_as_columns(tmp_path):
    path = schema(
        tmp_path,
        "file: {kind: file}\nage:\n  kind: numeric\n  range: [0, 120]\nx: {kind: binary, values: [no, 1]}\n",
    )
    (card,) = fusionkit_components()
    source = card.build(options(columns=..., schema_file=str(path)))
    assert source.schema == {
        "file": ColumnSpec(kind="file"),
        "age": ColumnSpec(kind="numeric", range=(0, 120)),
        "x": ColumnSpec(kind="binary", values=("no", "1")),
    }


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("a: {kind: text}\na: {kind: file}\n", [":2: 'a' is declared twice. Keep one."]),
        ("a: {kind: numbr}\n", [": a.kind: Input should be 'file', 'text', 'numeric'"]),
        (
            "a: {kind: binary, values: [x]}\nb: {kind: file, colour: red}\n",
            [
                ": a: a binary column has exactly two `values`.",
                ": b.colour: Extra inputs are not permitted.",
            ],
        ),
        ("a: &x {kind: file}\nb: *x\n", [": aliases (*) are not read. Write each column out."]),
        ("a: [\n", [":2: not valid YAML (did not find expected node content). Mend it."]),
        ("a: {kind: \x07}\n", [": not valid YAML (a character that no text file holds). Mend it."]),
        ("? [a]\n: b\n", [":1: a key is a word, not a list or a mapping."]),
        ("a: " + "[" * 500, [": nested more than 20 deep. A schema file needs 3 levels."]),
        ("# " + "x" * (1 << 20), [": larger than 1 MiB. This is no schema file."]),
        ("- a\n", [": the file: Input should be a valid dictionary."]),
        ("{}\n", [": the schema file is empty. It maps each column to its kind."]),
        ("a: !!python/object:os.system {kind: fil}\n", [": a.kind: Input should be 'file'"]),
    ],
)
def test_a_wrong_schema_file(tmp_path, text, problems):
    path = schema(tmp_path, text)
    with pytest.raises(DataError) as error:
        read_schema(path)
    assert len(error.value.problems) == len(problems)
    for given, expected in zip(error.value.problems, problems, strict=True):
        assert given.startswith(f"{path}{expected}")


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/stdin"])
def test_a_device_is_no_schema_file(name):
    with pytest.raises(DataError) as error:
        read_schema(Path(name))
    assert str(error.value) == (
        f"{name}: there is no such schema file. Check `schema_file` and the data root."
    )


def test_a_schema_file_that_is_no_text(tmp_path):
    path = tmp_path / "schema.yaml"
    path.write_bytes(b"a: \xff")
    with pytest.raises(DataError) as error:
        read_schema(path)
    assert str(error.value) == f"{path}: not UTF-8 text (byte 3). Save it as UTF-8."


@pytest.mark.parametrize("option", ["table", "images", "schema_file"])
def test_a_path_has_no_nul(option):
    with pytest.raises(ValidationError, match="a path has no NUL character"):
        options(**{option: "a\0.csv"})


def test_a_path_that_is_too_long_is_no_table(tmp_path):
    long = tmp_path / ("x" * 300 + ".csv")
    with pytest.raises(DataError) as error:
        read_table(long)
    assert str(error.value) == f"{long}: the table cannot be read (File name too long). Check its name."


def test_an_absent_schema_file(tmp_path):
    path = tmp_path / "no.yaml"
    with pytest.raises(DataError) as error:
        read_schema(path)
    assert str(error.value) == f"{path}: there is no such schema file. Check `schema_file` and the data root."


# the card


def test_the_card_is_light_and_its_examples_build():
    code = (
        "import sys; from fusionkit_manifest import fusionkit_components; fusionkit_components(); "
        "print(sorted({'torch', 'numpy', 'polars', 'sklearn', 'yaml'} & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )
    (card,) = fusionkit_components()
    for example in card.examples:
        source = card.build(example)
        assert source.classes == ("benign", "malignant")
        assert source.simulated is False


# real data

real = pytest.mark.skipif("FUSIONKIT_DATA" not in os.environ, reason="FUSIONKIT_DATA is not set")


def read_real(**given) -> Manifest:
    root = Path(os.environ["FUSIONKIT_DATA"])
    (card,) = fusionkit_components()
    return card.build(ManifestOptions(**given)).read(SourceContext(root, root))


@real
def test_breast_usg():
    data = read_real(
        table="breast_usg/clinical.csv",
        images="breast_usg/images",
        sample="CaseID",
        subject="CaseID",
        outcome="Classification",
        classes={"benign": "benign", "malignant": "malignant"},
        drop={"Classification": "normal"},
        columns={"Image_filename": {"kind": "file"}},
    )
    assert Counter(data.outcomes) == {"benign": 154, "malignant": 98}
    assert data.dropped == {"Classification=normal": 4}
    assert len(set(data.subjects)) == 252
    assert all(data.cells_of(row, ["Image_filename"])["Image_filename"].is_file() for row in range(len(data)))


@real
def test_breakhis_by_case_number():
    data = read_real(
        table="breakhis_100x/labels.csv",
        images="breakhis_100x/images",
        sample="image",
        subject="slide_id",
        subject_pattern="[0-9-]+",
        outcome="pathology",
        classes={"benign": "benign", "malignant": "malignant"},
        columns={"image": {"kind": "file"}},
    )
    assert Counter(data.outcomes) == {"benign": 210, "malignant": 212}
    assert len(set(data.subjects)) == 23
    assert "14-22549" in data.subjects
