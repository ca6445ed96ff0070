"""The source `pathoemr`: the released files, in whatever layout, and what is said when they do not fit."""

import csv
from pathlib import Path

import pytest
from pydantic import ValidationError

from fusionkit import DataError, Manifest, SourceContext
from fusionkit_pathoemr import fusionkit_components
from fusionkit_pathoemr.options import PathoemrOptions
from fusionkit_pathoemr.schema import COLUMNS, FIELDS

INDEX = [
    {"image": "p1/a.png", "patient_id": "p1", "label": "benign"},
    {"image": "p2/a.png", "patient_id": "p2", "label": "malignant"},
    {"image": "p1/b.png", "patient_id": "p1", "label": "malignant"},
]
RECORDS = [
    {"patient_id": "p2", **dict.fromkeys(FIELDS, "1"), "diagnosis": "1"},
    {"patient_id": "p1", **dict.fromkeys(FIELDS, "0"), "diagnosis": "0"},
]


def write(root: Path, index=INDEX, records=RECORDS, encoding="utf-8") -> None:
    folder = root / "pathoemr"
    folder.mkdir(exist_ok=True)
    for name, rows in (("index", index), ("records", records)):
        with (folder / f"{name}.csv").open("w", newline="", encoding=encoding) as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


def read(root: Path, **options) -> Manifest:
    card = next(card for card in fusionkit_components() if card.name == "pathoemr")
    return card.build(PathoemrOptions(**options)).read(SourceContext(data_root=root, cache=root))


def problems(root: Path, **options) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        read(root, **options)
    return caught.value.problems


def test_records_join_images_by_patient_in_the_indexs_order(tmp_path):
    write(tmp_path)
    manifest = read(tmp_path)
    assert manifest.samples == ["p1/a.png", "p2/a.png", "p1/b.png"]
    assert manifest.subjects == ["p1", "p2", "p1"]
    assert manifest.cells["age"].to_list() == ["0", "1", "0"]
    assert manifest.cells.columns == list(COLUMNS)
    assert manifest.root == tmp_path / "pathoemr/images"
    assert not manifest.is_simulated
    assert manifest.dropped == {}


def test_an_images_label_may_differ_from_the_patients_diagnosis(tmp_path):
    write(tmp_path)
    manifest = read(tmp_path)
    assert manifest.outcomes == ["benign", "malignant", "malignant"]
    assert manifest.subject_outcomes == ["benign", "malignant", "benign"]


def test_every_column_may_have_another_name_and_the_files_another_encoding(tmp_path):
    index = [{"文件": "a.png", "病人": "p1", "类": "良性", "倍数": "100x"}]
    records = [{"号": "p1", "诊断": "恶性", "年龄": "2", **{name: " 0 " for name in FIELDS if name != "age"}}]
    write(tmp_path, index, records, encoding="gb18030")
    manifest = read(
        tmp_path,
        image_column="文件",
        index_patient_column="病人",
        label_column="类",
        magnification_column="倍数",
        record_patient_column="号",
        diagnosis_column="诊断",
        fields={"age": "年龄"},
        class_texts={"良性": "benign", "恶性": "malignant"},
        encoding="gb18030",
    )
    assert manifest.outcomes == ["benign"]
    assert manifest.subject_outcomes == ["malignant"]
    assert manifest.cells["magnification"].to_list() == ["100x"]
    assert manifest.cells["age"].to_list() == ["2"]
    assert manifest.cells["gender"].to_list() == ["0"]
    assert "magnification" not in manifest.schema


def test_blank_cells_are_missing_and_blank_labels_unknown(tmp_path):
    write(tmp_path, [{**INDEX[0], "label": ""}], [{**RECORDS[1], "age": "", "gender": "NA", "diagnosis": ""}])
    manifest = read(tmp_path)
    assert manifest.outcomes == [None]
    assert manifest.subject_outcomes == [None]
    assert manifest.cells_of(0, ["age", "gender", "tumor"]) == {"age": None, "gender": None, "tumor": "0"}


def test_records_without_image_are_left_out_and_counted(tmp_path):
    write(tmp_path, INDEX[:1])
    assert read(tmp_path).dropped == {"record without image": 1}


def test_all_problems_are_told_at_once(tmp_path):
    index = [
        *INDEX,
        {"image": "p2/a.png", "patient_id": "p2", "label": "benin"},
        {"image": "p3/a.png", "patient_id": "p3", "label": "benin"},
        {"image": "p3/b.png", "patient_id": "p3", "label": "benign"},
        {"image": "", "patient_id": "p1", "label": "benign"},
        {"image": "x.png", "patient_id": "", "label": "benign"},
    ]
    records = [
        *RECORDS,
        {**RECORDS[0], "diagnosis": "2"},
        {**RECORDS[0], "patient_id": ""},
    ]
    write(tmp_path, index, records)
    classes = "Known: benign, malignant, 0, 1. Add it to `class_texts`."
    assert problems(tmp_path) == (
        "pathoemr/index.csv: row 8 names no image. Fill in column 'image'.",
        "pathoemr/index.csv: row 9 names no patient. Fill in column 'patient_id'.",
        "pathoemr/index.csv: image 'p2/a.png' has 2 rows. Keep one.",
        f"pathoemr/index.csv: column 'label' holds 'benin' in 2 rows. {classes}",
        "pathoemr/records.csv: row 5 names no patient. Fill in column 'patient_id'.",
        "pathoemr/records.csv: patient 'p2' has 2 rows. Keep one.",
        f"pathoemr/records.csv: column 'diagnosis' holds '2' in 1 row. {classes}",
        "pathoemr/index.csv: patient 'p3' has 2 images and no record. Add a row to pathoemr/records.csv; "
        "blank fields are allowed.",
    )


def test_an_absent_file_and_absent_columns_of_the_other_are_told_at_once(tmp_path):
    folder = tmp_path / "pathoemr"
    folder.mkdir()
    (folder / "index.csv").write_text("picture,patient_id\na.png,p1\n")
    assert problems(tmp_path) == (
        f"{folder}/index.csv: there is no column 'image'. Known: picture, patient_id.",
        f"{folder}/index.csv: there is no column 'label'. Known: picture, patient_id.",
        f"{folder}/records.csv: there is no such file. "
        "Set the source's options, --data-root or $FUSIONKIT_DATA.",
    )


def test_an_encoding_that_is_no_name_is_a_data_error(tmp_path):
    write(tmp_path)
    with pytest.raises(DataError) as error:
        read(tmp_path, encoding="\0")
    assert all("cannot be read as CSV in \\x00 (" in problem for problem in error.value.problems)


def test_a_file_that_is_no_csv_of_that_encoding_is_a_data_error(tmp_path):
    write(tmp_path)
    (tmp_path / "pathoemr/index.csv").write_bytes(
        "image,patient_id,label\n恶.png,p1,benign\n".encode("gb18030")
    )
    (tmp_path / "pathoemr/records.csv").write_bytes(b"")
    first, second = problems(tmp_path)
    assert first.startswith(f"{tmp_path}/pathoemr/index.csv: cannot be read as CSV in utf-8 (")
    assert second.startswith(f"{tmp_path}/pathoemr/records.csv: cannot be read as CSV in utf-8 (")
    assert first.endswith("). Set `encoding`.")


def released(benign_images: int = 1332, patients: int = 185) -> tuple[list[dict], list[dict]]:
    """Files of the published shape: 82 of 185 patients benign, 1332 of 3764 images."""
    blank = dict.fromkeys(FIELDS, "0")
    records = [
        {"patient_id": f"p{i}", **blank, "diagnosis": "malignant" if i >= 82 else "benign"}
        for i in range(patients)
    ]
    labels = ["benign"] * benign_images + ["malignant"] * (3764 - benign_images)
    index = [{"image": f"{k}.png", "patient_id": f"p{k % patients}", "label": labels[k]} for k in range(3764)]
    return index, records


def test_data_of_the_published_counts_are_accepted(tmp_path):
    write(tmp_path, *released())
    assert len(read(tmp_path, expect_released_counts=True)) == 3764


def test_every_deviation_from_the_published_counts_is_told(tmp_path):
    write(tmp_path, *released(benign_images=1330, patients=184))
    advice = "were published. Complete the data, or set `expect_released_counts: false`."
    assert problems(tmp_path, expect_released_counts=True) == (
        f"pathoemr/index.csv: there are 184 patients, and 185 {advice}",
        f"pathoemr/index.csv: there are 102 malignant patients, and 103 {advice}",
        f"pathoemr/index.csv: there are 1330 benign images, and 1332 {advice}",
        f"pathoemr/index.csv: there are 2434 malignant images, and 2432 {advice}",
    )
    assert len(read(tmp_path)) == 3764


def test_options_name_only_fields_and_classes_that_exist():
    with pytest.raises(ValidationError, match="`fields` names colour, which is none of the 29 fields"):
        PathoemrOptions(fields={"colour": "c"})
    with pytest.raises(
        ValidationError, match="`class_texts` maps to normal, and a class is benign or malignant"
    ):
        PathoemrOptions(class_texts={"n": "normal"})
