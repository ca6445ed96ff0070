"""fusionkit predict: a learned model in a new process, and every way in which it can be refused."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
import toy_images
from command_line import HOLDOUT, call, call_process, write_recipe

import fusionkit
from fusionkit.store import address_of

HEADER = "sample,probability_no,probability_yes,predicted,model,missing,simulated"
PICTURES = "--images .fusionkit/store/sources/toy_pictures".split()


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a finished run, and a table of its 36 rows without outcomes, most of them whole."""
    folder = tmp_path_factory.mktemp("home")
    assert call_process(folder, "run", write_recipe(folder), *HOLDOUT, "-q").returncode == 0
    manifest = toy_images.make_manifest(Path())
    lines = ["case,picture,number,word"]
    for row in range(36):
        lines.append(",".join([manifest.samples[row], *(manifest.cells[n][row] for n in toy_images.SCHEMA)]))
    write_lines(folder / "rows.csv", lines)
    return folder


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def predict(home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.delenv("FUSIONKIT_STORE", raising=False)

    def predict(*arguments, run="runs/pictures/latest"):
        return call(capsys, "predict", run, *arguments)

    return predict


def read_csv(text):
    return list(csv.DictReader(io.StringIO(text)))


def reported(home, model):
    rows = read_csv((home / "runs" / "pictures" / "latest" / "predictions.csv").read_text())
    return {row["sample"]: row for row in rows if row["level"] == "sample" and row["model"] == model}


def test_a_new_process_answers_each_row_in_order_with_the_runs_own_probabilities(home, tmp_path):
    lines = (home / "rows.csv").read_text().splitlines()
    lines[2] = "sample01,,0.5,a"  # no picture
    lines[3] = "sample02,02.png,,"  # no record
    lines[4] = "sample03,03.png,0.5,"  # half a record
    lines.insert(5, "nobody,,,")
    table = write_lines(tmp_path / "rows.csv", lines)
    arguments = ["runs/pictures/latest", table, *PICTURES, "--id", "case"]
    done = call_process(home, "predict", *arguments)
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == HEADER
    rows = read_csv(done.stdout)
    assert [row["sample"] for row in rows] == [line.split(",")[0] for line in lines[1:]]
    assert [(row["model"], row["missing"]) for row in rows[1:5]] == [
        ("record", "image"),
        ("image", "record"),
        ("fused", "record: 1 of 2 cells (word)"),
        ("none", "image; record"),
    ]
    assert done.stdout.splitlines()[5] == "nobody,,,,none,image; record,true"
    whole = [row for row in rows if not row["missing"]]
    expected = reported(home, "fused")
    both = [row for row in whole if row["sample"] in expected]
    assert len(both) >= 9
    for row in both:
        for name in ("probability_no", "probability_yes"):
            assert float(row[name]) == pytest.approx(float(expected[row["sample"]][name]), abs=1e-6)
        assert row["predicted"] == expected[row["sample"]]["predicted"]
    assert "\x1b" not in done.stderr


def test_json_says_the_same_as_the_text(predict):
    code, out, err = predict("rows.csv", *PICTURES, "--id", "case", "--json", "-q")
    assert (code, err) == (0, "")
    node = json.loads(out)
    assert (node["classes"], node["is_simulated"]) == (["no", "yes"], True)
    assert node["thresholds"] == {"fused": 0.5, "image": 0.5, "record": 0.5}
    rows = read_csv(predict("rows.csv", *PICTURES, "--id", "case")[1])
    assert [row["sample"] for row in node["rows"]] == [row["sample"] for row in rows]
    assert [f"{row['probabilities'][1]:.8f}" for row in node["rows"]] == [
        row["probability_yes"] for row in rows
    ]


def test_a_file_can_take_the_answers(predict, tmp_path):
    code, out, err = predict("rows.csv", *PICTURES, "-o", tmp_path / "new" / "answers.csv", "-q")
    assert (code, out, err) == (0, "", f"36 rows: {tmp_path / 'new' / 'answers.csv'}\n")
    lines = (tmp_path / "new" / "answers.csv").read_text().splitlines()
    assert lines[0] == HEADER
    assert [line.split(",")[0] for line in lines[1:]] == [f"row{number}" for number in range(1, 37)]


def test_a_table_with_the_columns_of_one_modality_is_answered_by_its_model(predict, home, tmp_path):
    lines = [",".join(line.split(",")[:2]) for line in (home / "rows.csv").read_text().splitlines()]
    code, out, _ = predict(write_lines(tmp_path / "few.csv", lines), *PICTURES, "--id", "case")
    assert code == 0
    assert {(row["model"], row["missing"]) for row in read_csv(out)} == {("image", "record")}


def test_half_a_record_is_refused(predict, tmp_path):
    table = write_lines(tmp_path / "half.csv", ["case,number", "a,1"])
    assert predict(table, "--id", "cas") == (
        4,
        "",
        f"error: {table}: modality record has no column 'word'. Known: case, number.\n"
        f"error: {table}: --id: there is no column 'cas'. Did you mean 'case'? Known: case, number.\n",
    )


def test_a_table_in_latin_1_is_read_as_such(predict, tmp_path):
    table = tmp_path / "old.csv"
    table.write_bytes("case,number,word\nM\u00fcller,0.5,a\n".encode("latin-1"))
    assert predict(table, "--id", "case", "-q") == (
        4,
        "",
        f"error: {table}: line 2: not UTF-8 (byte 0xfc). Save the table as UTF-8, or say that it is "
        "latin-1 (the source's option `encoding`; in predict, --encoding).\n",
    )
    code, out, err = predict(table, "--id", "case", "--encoding", "latin-1", "-q")
    assert (code, err) == (0, "")
    assert [row["sample"] for row in read_csv(out)] == ["M\u00fcller"]
    code, out, err = predict(table, "--encoding", "utf-7")
    assert code == 2
    assert "'utf-7' is not one of 'utf-8', 'latin-1'" in err


def test_a_value_and_a_file_that_cannot_be_are_named(predict, tmp_path):
    table = write_lines(tmp_path / "odd.csv", ["case,picture,number,word", "a,,1,z", "b,gone.png,1,a"])
    assert predict(table, "--id", "case") == (
        4,
        "",
        f"error: {table}: row1 (a): word: not an allowed value ('z'). Known: a, b, c.\n"
        f"error: {table}: row2 (b): picture: there is no such file ({tmp_path / 'gone.png'}). "
        "Check its name and the folder that it is relative to.\n",
    )


def test_what_is_no_run_and_no_table_are_errors_of_the_data(predict, home):
    assert predict("rows.csv", run="runs") == (
        4,
        "",
        "error: runs: no finished run (no model/index.json). Give one, such as runs/NAME/latest.\n",
    )
    assert predict("gone.csv") == (
        4,
        "",
        "error: gone.csv: there is no such table. Check its name and the folder of the data.\n",
    )


def test_one_flipped_byte_is_an_error_of_integrity(predict, home, tmp_path):
    run = Path(shutil.copytree(home / "runs" / "pictures" / "latest", tmp_path / "run"))
    path = sorted((run / "model").glob("*.safetensors"))[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert predict("rows.csv", run=run) == (
        6,
        "",
        f"error: {path}: not what the run wrote (sha256 differs). Run the recipe again.\n",
    )


def test_a_place_that_cannot_be_written_is_an_error_of_the_machine(predict, home):
    code, out, err = predict("rows.csv", *PICTURES, "-q", "-o", home / "rows.csv" / "answers.csv")
    assert (code, out) == (8, "")
    assert err.startswith(f"error: {home / 'rows.csv' / 'answers.csv'}: cannot be written (")


def test_other_versions_than_the_runs_are_one_line_of_stderr_and_no_error(predict, home, tmp_path):
    run = Path(shutil.copytree(home / "runs" / "pictures" / "latest", tmp_path / "run"))
    path = run / "model" / "index.json"
    index = json.loads(path.read_text())
    del index["digest"]
    index["device"]["torch"] = "1.0"
    index["fusionkit"] = "0.0.9"
    path.write_text(json.dumps({**index, "digest": address_of(index)}))
    code, out, err = predict("rows.csv", *PICTURES, "-q", run=run)
    assert code == 0
    assert out == predict("rows.csv", *PICTURES, "-q")[1]
    assert err == (
        f"warning: not as in the run, so predictions may differ: "
        f"fusionkit 0.0.9, now {fusionkit.__version__}; torch 1.0, now {torch.__version__}.\n"
    )


def test_ctrl_c_ends_with_a_sentence(predict, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("fusionkit.predict.predict", interrupt)
    code, out, err = predict("rows.csv", *PICTURES, "-q")
    assert (code, out) == (130, "")
    first, command = err.splitlines()
    assert first == "interrupted: what was computed is kept. To go on, give the same command:"
    assert command.startswith("  fusionkit -p ")
    assert command.endswith(f" predict runs/pictures/latest rows.csv {' '.join(PICTURES)} -q")


def test_answers_are_never_written_over_what_they_are_made_of(predict, home):
    before = (home / "rows.csv").read_text()
    for output, reason in (
        ("rows.csv", "the table of rows itself (rows.csv). Name another file."),
        (
            "runs/pictures/latest/report.json",
            "inside the run, which must stay as it is (runs/pictures/latest/report.json). Name another file.",
        ),
        ("runs", "a folder (runs). Name a file."),
    ):
        assert predict("rows.csv", "-o", output) == (2, "", f"error: --output: {reason}\n")
    assert (home / "rows.csv").read_text() == before
