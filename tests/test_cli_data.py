"""fusionkit data audit: one table, JSON beside it, every problem named, nothing read twice."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_images
from command_line import call, command, environment
from PIL import Image

import fusionkit.prepare
from fusionkit.locks import users

RECIPE = """\
name: study
source:
  use: manifest
  table: rows.csv
  sample: id
  subject: patient
  outcome: diagnosis
  classes: {benign: [benign], malignant: [malignant]}
  sha256: {picture: sum}
  columns:
    picture: {kind: file}
    age: {kind: numeric, range: [0, 120], unit: years}
    how: {kind: category, values: [seen, cut]}
modalities:
  image: {columns: [picture], encoder: {use: toy_conv, input: {size: 8}}}
  record: {columns: [age, how], encoder: {use: toy_mean}}
head: {use: toy_linear}
stages:
  - {name: fuse, train: [head, image.encoder, record.encoder], epochs: 1}
split: {scheme: folds, folds: 2}
training: {device: cpu, precision: fp32, threads: 1}
evaluation: {resamples: 100, modalities_alone: false}
"""


@pytest.fixture
def study(tmp_path, monkeypatch) -> Path:
    """24 rows of 12 subjects, a table and pictures, all of them whole."""
    monkeypatch.chdir(tmp_path)
    for name in ("FUSIONKIT_STORE", "FUSIONKIT_DATA"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "study.yaml").write_text(RECIPE)
    toy_images.make_pictures(tmp_path / "data")
    write_rows(tmp_path, rows_of(tmp_path))
    return tmp_path


def rows_of(folder: Path) -> list[dict[str, str]]:
    return [
        {
            "id": f"s{row:02}",
            "patient": f"p{row // 2:02}",
            "diagnosis": ("benign", "malignant")[row // 2 % 2],
            "picture": f"{row:02}.png",
            "sum": hashlib.sha256((folder / "data" / f"{row:02}.png").read_bytes()).hexdigest(),
            "age": str(40 + row // 4 % 3),
            "how": ("seen", "cut")[row // 4 % 2],
        }
        for row in range(24)
    ]


def write_rows(folder: Path, rows: list[dict[str, str]]) -> None:
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    (folder / "data" / "rows.csv").write_text("\n".join(lines) + "\n")


def audit(capsys: Any, *arguments: Any) -> tuple[int, str, str]:
    return call(capsys, "data", "audit", "study.yaml", *arguments, "-q")


WHOLE = """\
study: 24 samples of 12 subjects.

  class      samples  subjects
  benign          12         6
  malignant       12         6

  modality  samples  share
  image          24  100 %
  record         24  100 %

  column   kind      missing  share  distinct    AUC
  picture  file            0    0 %        24
  age      numeric         0    0 %         3  {age}
  how      category        0    0 %         2  {how}
  AUC: what the column reaches by itself, cross-validated by subject; 0.5 or
  less is nothing.

24 files decoded now, 0 known to be whole since an earlier audit.
no errors, no warnings.
"""


def test_a_whole_study_is_one_table_and_the_second_time_nothing_is_decoded(study, capsys):
    code, out, err = audit(capsys)
    assert (code, err) == (0, "")
    node = json.loads(audit(capsys, "--json")[1])
    aucs = {column["name"]: f"{column['auc'] or 0:.3f}" for column in node["columns"]}
    assert out == WHOLE.format(**aucs)
    assert max(map(len, out.splitlines())) <= 80
    code, again, _ = audit(capsys)
    assert code == 0
    assert again == out.replace("24 files decoded now, 0 known", "0 files decoded now, 24 known")


def test_texts_are_read_but_no_files(study, capsys):
    write_rows(study, [row | {"note": f"seen {i} times"} for i, row in enumerate(rows_of(study))])
    recipe = RECIPE.replace("    how: {", "    note: {kind: text}\n    how: {")
    words = "  words: {columns: [note], encoder: {use: hashed_words, width: 16}}\nhead:"
    recipe = recipe.replace("head:", words).replace("train: [head,", "train: [head, words.encoder,")
    (study / "study.yaml").write_text(recipe)
    for counts in ("24 files decoded now, 0 known", "0 files decoded now, 24 known"):
        code, out, err = audit(capsys)
        assert (code, err) == (0, "")
        assert f"\n{counts} to be whole since an earlier audit.\n" in out


def test_what_is_forbidden_is_counted_apart_from_what_is_missing(study, capsys):
    rows = rows_of(study)
    rows[1]["age"], rows[3]["age"], rows[4]["age"] = "400", "", "-1"
    for row in rows:
        row["how"] = "felt"
    write_rows(study, rows)
    code, out, _ = audit(capsys)
    assert code == 4
    lines = [line.split() for line in out.splitlines()]
    assert ["column", "kind", "missing", "share", "illegal", "distinct", "AUC"] in lines
    assert [line[:7] for line in lines if line[:1] in (["picture"], ["age"], ["how"])] == [
        ["picture", "file", "0", "0", "%", "0", "24"],
        ["age", "numeric", "1", "4", "%", "2", "3"],
        ["how", "category", "0", "0", "%", "24", "0"],
    ]
    assert "no row has a value" not in out


def test_json_holds_it_all_with_every_row(study, capsys):
    rows = rows_of(study)
    rows[3]["age"], rows[5]["age"] = "41", "400"
    write_rows(study, rows)
    code, out, err = audit(capsys, "--json")
    assert code == 4
    problem = "sample s05 (subject p02): age: outside its range ('400'). Allowed: 0 to 120 years."
    assert err == f"error: {problem}\n"
    node = json.loads(out)
    assert list(node) == [
        "recipe",
        "samples",
        "subjects",
        "classes",
        "modalities",
        "columns",
        "files",
        "errors",
        "warnings",
        "n_bad_cells",
    ]
    assert node["errors"] == [{"check": "value", "message": problem, "samples": ["s05"]}]
    (warning,) = node["warnings"]
    assert (warning["check"], warning["samples"]) == ("record", ["s02", "s03"])
    assert warning["message"] == (
        "record: samples of one subject have different values: age (subject p01: 40 and 41). "
        "Mend them, unless they change from sample to sample."
    )
    assert node["classes"] == {
        "benign": {"samples": 12, "subjects": 6},
        "malignant": {"samples": 12, "subjects": 6},
    }
    assert node["files"] == {"decoded": 24, "remembered": 0}


def test_every_kind_of_problem_is_named_at_once(study, capsys):
    pictures = study / "data"
    rows = rows_of(study)
    (pictures / "00.png").unlink()
    data = (pictures / "01.png").read_bytes()
    (pictures / "01.png").write_bytes(data[:-30])
    rows[1]["sum"] = hashlib.sha256(data[:-30]).hexdigest()
    Image.new("RGB", (12, 12)).save(pictures / "02.png")
    (pictures / "04.png").write_bytes((pictures / "09.png").read_bytes())
    rows[4]["sum"] = rows[9]["sum"].upper()
    rows[6]["how"] = "heard"
    rows[7]["diagnosis"] = "benign"
    given, found = rows[2]["sum"], hashlib.sha256((pictures / "02.png").read_bytes()).hexdigest()
    write_rows(study, rows)
    code, out, err = audit(capsys)
    assert code == 4
    assert out.splitlines()[-1] == "6 errors, no warnings."
    assert "  unknown          0         1" in out  # the subject whose samples disagree
    value, absent, truncated, swapped, twice, outcome = err.splitlines()
    assert value == (
        "error: sample s06 (subject p03): how: not an allowed value ('heard'). Known: cut, seen."
    )
    assert absent == (
        f"error: sample s00 (subject p00): picture: there is no such file ({study}/data/00.png). "
        "Check its name and the folder that it is relative to."
    )
    assert swapped == (
        "error: sample s02 (subject p01): picture: not the file that its checksum names "
        f"({study}/data/02.png: sha256 {found[:12]}, given {given[:12]}). "
        "Fetch it again, or mend the checksum."
    )
    assert truncated.startswith(
        f"error: sample s01 (subject p00): {study}/data/01.png: the image is truncated or broken ("
    )
    assert twice == (
        "error: sample s04 (subject p02) and sample s09 (subject p04): picture: the same file under two "
        f"subjects (04.png and 09.png; sha256 {rows[9]['sum'][:12]}). "
        "Leave all but one out, or mend the subject."
    )
    assert outcome == (
        "error: outcome: samples of one subject have different ones (p03: 1 benign, 1 malignant). "
        "Give a column for subject_outcome, or set evaluation.subject_outcome: any_positive."
    )
    run_code, run_out, run_err = call(capsys, "run", "study.yaml", "-q")
    assert (run_code, run_out, run_err) == (4, "", err)
    assert not (study / ".fusionkit" / "store" / "artefacts").exists()


def test_paths_that_must_not_be_followed_are_named_with_their_rows(study, capsys):
    root = study / "data"
    (study / "outside.png").write_bytes((root / "03.png").read_bytes())
    (root / "link.png").symlink_to(study / "outside.png")
    rows = rows_of(study)
    cells = ("../outside.png", "https://x.org/a.png", "link.png", "/etc/passwd")
    for row, cell in zip(rows, cells, strict=False):
        row["picture"] = cell
    write_rows(study, rows)
    code, _, err = audit(capsys)
    assert code == 4
    assert err.splitlines() == [
        "error: sample s00 (subject p00): picture: a path that leaves its folder (../outside.png). "
        f"Only files in {root} are read.",
        "error: sample s01 (subject p00): picture: a URL, not a path (https://x.org/a.png). "
        f"Fetch the file and give a path relative to {root}.",
        "error: sample s02 (subject p01): picture: a path that leaves its folder (link.png). "
        f"Only files in {root} are read.",
        "error: sample s03 (subject p01): picture: an absolute path (/etc/passwd). "
        f"Give a path relative to {root}.",
    ]


def test_what_the_source_refuses_is_an_error_too(study, capsys):
    rows = rows_of(study)
    rows[3]["diagnosis"] = "malignent"
    rows[4]["sum"] = "abc"
    rows[5]["id"] = "s04"
    write_rows(study, rows)
    problems = [
        "rows.csv: id: a sample's id is used twice (s04). Make ids unique.",
        "rows.csv: diagnosis: 'malignent' is no class (1 sample: s03). Name it under `classes`, or leave its "
        "rows out with `drop`. Did you mean 'malignant'? Known: benign, malignant.",
        "rows.csv: sum: not a sha256 (1 sample: s04). A sha256 has 64 hexadecimal digits, as `sha256sum` "
        "prints them.",
    ]
    rows[8]["age"] = "400"
    rows[9]["picture"] = "gone.png"
    write_rows(study, rows)
    problems += [
        "sample s08 (subject p04): age: outside its range ('400'). Allowed: 0 to 120 years.",
        f"sample s09 (subject p04): picture: there is no such file ({study}/data/gone.png). Check its name "
        "and the folder that it is relative to.",
    ]
    code, out, err = audit(capsys)
    assert code == 4
    assert out.endswith("\n5 errors, no warnings.\n")
    assert err == "".join(f"error: {problem}\n" for problem in problems)
    assert call(capsys, "run", "study.yaml", "-q") == (4, "", err), "a run says the same"
    code, out, _ = audit(capsys, "--json")
    assert code == 4
    assert [error["message"] for error in json.loads(out)["errors"]] == problems


def test_a_flipped_byte_of_a_picture_stops_audit_and_run_and_names_the_file(study, capsys):
    assert audit(capsys)[0] == 0
    path = study / "data" / "05.png"
    Image.open(path).save(path.with_suffix(".bmp"))
    path.write_bytes(path.with_suffix(".bmp").read_bytes())
    rows = rows_of(study)
    write_rows(study, rows)
    assert audit(capsys)[0] == 0
    data = bytearray(path.read_bytes())
    data[-3] ^= 1  # a pixel: what is there still decodes
    before = os.stat(path)
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # not even its time tells
    for arguments in (("data", "audit", "study.yaml", "-q"), ("run", "study.yaml", "-q")):
        code, _, err = call(capsys, *arguments)
        assert code == 4
        assert err.startswith(
            "error: sample s05 (subject p02): picture: not the file that its checksum names "
            f"({study}/data/05.png: "
        )
        assert len(err.splitlines()) == 1


def test_warnings_are_short_and_stand_in_a_runs_report(study, capsys):
    rows = rows_of(study)
    for row in rows:
        row["how"] = "cut" if row["diagnosis"] == "malignant" else "seen"
    write_rows(study, rows)
    warning = (
        "record: how gives the outcome away: alone it reaches an AUC of 1.000, cross-validated by subject. "
        "Leave it out if it is not known before the outcome is."
    )
    code, out, err = audit(capsys)
    assert (code, err) == (0, "")
    assert f"warning: {warning}" in " ".join(out.split())
    assert out.splitlines()[-1] == "no errors, 1 warning."
    code, out, err = call(capsys, "run", "study.yaml")
    assert code == 0
    assert re.sub(r"-\s+", "-", " ".join(out.split())).count(warning) == 1
    assert err.splitlines()[:2] == [
        "reading manifest",
        "audit: 1 warning about the data; the report names it",
    ]
    assert warning not in " ".join(err.split())
    report = json.loads((study / "runs" / "study" / "latest" / "report.json").read_text())
    assert report["warnings"].count(warning) == 1


def test_long_names_stay_within_the_width(study, capsys):
    name = "a_column_with_a_name_that_nobody_would_ever_call_short_at_all_" + "x" * 20
    for path in (study / "study.yaml", study / "data" / "rows.csv"):
        path.write_text(re.sub(r"\bage\b", name, path.read_text()))
    code, out, _ = audit(capsys)
    assert code == 0
    lines = out.splitlines()
    index = lines.index(f"  {name}")
    assert lines[index + 1].split()[0] == "numeric"
    assert max(len(line) for line in lines if name not in line) <= 80


def test_a_recipe_that_is_wrong_is_no_audit(study, capsys):
    code, out, err = audit(capsys, "split.folds=1")
    assert (code, out) == (3, "")
    assert err == "error: override 'split.folds=1': split.folds: must be at least 2 (1).\n"
    code, _, err = call(capsys, "data", "audit", "none.yaml")
    assert (code, err) == (3, "error: none.yaml: there is no such recipe file. Known: study.yaml.\n")


def test_fewer_subjects_than_folds_one_class_and_a_split_by_a_column(study, capsys):
    code, _, err = audit(capsys, "split.folds=7")
    assert code == 4
    assert err.splitlines()[0] == (
        "error: split: fold 7 of 7 would test no 'benign' subject (6 'benign' subjects in all). "
        "Use at most 6 folds."
    )
    rows = rows_of(study)
    for row in rows:
        row["diagnosis"] = "benign"
    write_rows(study, rows)
    code, _, err = audit(capsys)
    assert (code, err) == (
        4,
        "error: split: there is no 'malignant' subject (12 subjects with a known outcome). "
        "Every class must be there: benign, malignant.\n",
    )
    rows = rows_of(study)
    for number, row in enumerate(rows):
        row["set"] = "test" if number > 16 else "train"
    write_rows(study, rows)
    code, _, err = audit(capsys, "split={scheme: column, column: set}")
    assert (code, err) == (
        4,
        "error: split: subject p08 is on several sides of 'set' (train: s16, test: s17). "
        "Put it on one side.\n",
    )


def test_rows_that_a_split_by_a_column_puts_nowhere_are_counted(study, capsys):
    rows = rows_of(study)
    for number, row in enumerate(rows):
        row["set"] = ("train", "test", "else")[(number // 2) % 3]
    write_rows(study, rows)
    code, out, _ = audit(capsys, "split={scheme: column, column: set}")
    assert code == 0
    assert "in no set (column 'set': 'else'). Name the value, if that is not meant." in " ".join(out.split())


def test_weights_that_are_not_there_do_not_hide_what_is_wrong_with_the_data(study, capsys):
    rows = rows_of(study)
    rows[5]["age"] = "400"
    write_rows(study, rows)
    (study / "data" / "07.png").unlink()
    encoder = "modalities.image.encoder={use: vgg16_multilevel, weights: none.safetensors}"
    code, out, err = audit(capsys, encoder, "--json")
    assert code == 4
    assert [error["check"] for error in json.loads(out)["errors"]] == ["value", "file", "encoder"]
    assert err.splitlines()[-1] == (
        f"error: modalities.image.encoder.weights: {study}/data/none.safetensors: there is no such weights "
        "file. Set --data-root or $FUSIONKIT_DATA, or fetch it."
    )


NOT_HERE = (
    "modalities.image.encoder.weights: not here yet (imagenet), and only a run fetches it. "
    "Give `fusionkit run`, or name a file that is here. Files of image were not decoded."
)
FETCHED = "modalities.image.encoder={use: vgg16_multilevel, weights: imagenet, input: {size: 8}}"


def test_an_audit_does_not_fetch_weights_and_warns_that_it_decoded_no_files(study, capsys, monkeypatch):
    monkeypatch.setattr("torch.hub._hub_dir", str(study / "hub"))
    code, out, err = audit(capsys, FETCHED, "-q")
    assert (code, err) == (0, "")
    assert " ".join(out.split()).endswith(f"warning: {NOT_HERE} no errors, 1 warning.")
    assert "Downloading" not in out
    assert list((study / "hub").rglob("*.pth*")) == []


def test_without_weights_that_a_run_would_fetch_nothing_is_planned(study, capsys, monkeypatch):
    monkeypatch.setattr("torch.hub._hub_dir", str(study / "hub"))
    rows = rows_of(study)
    rows[5]["age"] = "400"
    write_rows(study, rows)
    code, out, err = call(capsys, "run", "--dry-run", "study.yaml", FETCHED)
    assert (code, out) == (4, "")
    outside = "sample s05 (subject p02): age: outside its range ('400'). Allowed: 0 to 120 years."
    assert (
        err
        == f"error: {outside}\nerror: {NOT_HERE} Without them nothing can be planned: leave --dry-run out.\n"
    )
    assert list((study / "hub").rglob("*.pth*")) == []


def test_a_run_would_fetch_them_and_says_where_it_cannot(study, capsys, monkeypatch):
    def vgg16(weights: Any) -> Any:
        raise OSError("no route to host")

    monkeypatch.setattr("fusionkit_vgg.vgg16.vgg16", vgg16)
    assert call(capsys, "run", "study.yaml", FETCHED, "-q") == (
        4,
        "",
        "error: modalities.image.encoder.weights: ImageNet's cannot be fetched (no route to host). Go "
        "online, or name a safetensors file.\n",
    )


def test_a_run_says_what_the_audit_knows_before_it_fetches_weights(study, capsys, monkeypatch):
    def vgg16(weights: Any) -> Any:
        sys.audit("socket.connect", None, ("download.example", 443))  # as a connection does
        print("fetching", file=sys.stderr)
        raise OSError("no route to host")

    monkeypatch.setattr("fusionkit_vgg.vgg16.vgg16", vgg16)
    rows = rows_of(study)
    for row in rows:
        row["how"] = "cut" if row["diagnosis"] == "malignant" else "seen"
    write_rows(study, rows)
    code, _, err = call(capsys, "run", "study.yaml", FETCHED)
    lines = err.splitlines()
    assert code == 4
    assert lines[:3] == [
        "reading manifest",
        "audit: 1 warning about the data; the report names it",
        "fetching",
    ]
    assert "no route to host" in lines[-1]
    rows[5]["age"] = "400"
    write_rows(study, rows)
    code, _, err = call(capsys, "run", "study.yaml", FETCHED, "-q")
    assert code == 4
    outside = "sample s05 (subject p02): age: outside its range ('400'). Allowed: 0 to 120 years."
    assert err == f"error: {outside}\n"


def test_a_store_that_cannot_be_written_is_said(study, capsys):
    code, _, err = audit(capsys, "--store", study / "study.yaml")
    assert code == 8
    assert "cannot be written (Not a directory)" in err


def test_whoever_audits_is_named_to_who_prunes_the_store(study, capsys, monkeypatch):
    locks, seen = study / ".fusionkit" / "store" / "locks", []
    real = fusionkit.prepare.examine

    def examine(*given: Any, **named: Any) -> Any:
        seen.append(len(users(locks)))
        return real(*given, **named)

    monkeypatch.setattr(fusionkit.prepare, "examine", examine)
    assert audit(capsys)[0] == 0
    assert (seen, users(locks)) == ([1], [])


def test_what_a_plugin_reads_is_audited_too(study, capsys):
    example = Path(__file__).parent.parent / "examples" / "fusionkit-ecg" / "fusionkit_ecg"
    rows = rows_of(study)
    for number, row in enumerate(rows):
        row["picture"], row["sum"] = f"{number}.npy", ""
        np.save(study / "data" / f"{number}.npy", np.arange(40.0).reshape(20, 2) + number)
    write_rows(study, rows)
    (study / "data" / "3.npy").write_bytes(b"\x93NUMPY and no more")
    np.save(study / "data" / "8.npy", np.zeros((4, 4)))
    recipe = RECIPE.replace("{use: toy_conv, input: {size: 8}}", "{use: ecg, leads: 2, length: 64}")
    (study / "study.yaml").write_text(recipe)
    arguments = ("-p", example, "data", "audit", "study.yaml", "-q")
    code, out, err = call(capsys, *arguments)
    assert code == 4
    broken, flat = err.splitlines()
    assert broken.startswith(
        f"error: sample s03 (subject p01): {study}/data/3.npy: not a .npy file of numbers ("
    )
    assert flat == (
        f"error: sample s08 (subject p04): {study}/data/8.npy: not an electrocardiogram of 2 leads "
        "(shape: (4, 4)). Finite values are read, a row for each step, a column for each lead."
    )
    np.save(study / "data" / "3.npy", np.arange(40.0).reshape(20, 2) + 100)
    np.save(study / "data" / "8.npy", np.arange(40.0).reshape(20, 2) + 200)
    code, out, err = call(capsys, *arguments)
    assert (code, err) == (0, "")
    assert "2 files decoded now, 22 known to be whole since an earlier audit." in out


def test_ctrl_c_ends_with_a_sentence(study):
    slow = study / "slow.py"
    slow.write_text(
        "import time\nfrom fusionkit.data import images\nreal = images.ImageInput.load\n"
        "def load(self, cells, cuts):\n    print('one', flush=True)\n    time.sleep(0.3)\n"
        "    return real(self, cells, cuts)\nimages.ImageInput.load = load\n"
        "def fusionkit_components():\n    return []\n"
    )
    process = subprocess.Popen(
        command("-p", slow, "data", "audit", "study.yaml"),
        cwd=study,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "one\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    said, again = err.splitlines()[-2:]
    assert said == "interrupted: what was computed is kept. To go on, give the same command:"
    assert again.endswith(" data audit study.yaml")
    assert "Traceback" not in err
