"""fusionkit evaluate: what is printed, what is left, and how it is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import test_evaluate
from command_line import HOLDOUT, call, call_process

RUN = "runs/pictures/latest"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a finished run on one hospital's data, and another hospital's data."""
    folder = tmp_path_factory.mktemp("home")
    for name, seed in (("a", 1), ("b", 2)):
        test_evaluate.write_study(folder / "data" / name, test_evaluate.rows_of(name, seed), seed)
    (folder / "pictures.yaml").write_text(test_evaluate.RECIPE)
    done = call_process(folder, "run", "pictures.yaml", *HOLDOUT, "-q")
    assert done.returncode == 0
    return folder


@pytest.fixture
def evaluate(home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    for name in ("FUSIONKIT_STORE", "FUSIONKIT_DATA"):
        monkeypatch.delenv(name, raising=False)

    def evaluate(*arguments, run=RUN):
        return call(capsys, "evaluate", run, *arguments)

    return evaluate


def test_another_table_is_answered_by_the_table_of_a_run(evaluate, home):
    name = (home / RUN).resolve().name
    code, out, err = evaluate("--data", "data/b/rows.csv", "-q")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"Run runs/pictures/{name}, unchanged, on other data"
    assert "Tested: 12 subjects (6 no, 6 yes) with 36 samples." in lines
    assert any(line.startswith("fused  ") for line in lines)
    assert any(line.startswith("Values by subject; below each, its 95 % interval (100 ") for line in lines)
    assert sum(line.startswith("Fusion ") for line in lines) == 4
    assert lines[-1].startswith(f"Files: runs/pictures/{name}/evaluations/")
    assert (home / lines[-1].removeprefix("Files: ") / "report.json").is_file()
    assert max(map(len, lines[1:-1])) <= 80


def test_a_table_and_an_option_of_the_source_say_the_same(evaluate):
    tables = [
        json.loads(evaluate(*given, "--json", "-q")[1])["report"]["models"]
        for given in (
            ["--data", "data/b/rows.csv"],
            ["source.table=b/rows.csv"],
            ["--data", "data/b/rows.csv", "--images", "data/b"],
        )
    ]
    assert tables[0] == tables[1] == tables[2]


def test_json_is_the_report_of_the_folder(evaluate, home, tmp_path):
    code, out, err = evaluate("--data", "data/b/rows.csv", "--json", "-o", tmp_path / "here")
    assert (code, err.splitlines()[0]) == (0, "reading manifest")
    node = json.loads(out)
    assert set(node) == {"folder", "report"}
    assert Path(node["folder"]).parent == tmp_path / "here"
    assert node["report"] == json.loads((Path(node["folder"]) / "report.json").read_text())


def test_whom_the_run_learned_from_ends_with_code_4_unless_left_out(evaluate):
    code, out, err = evaluate("-q")
    assert (code, out) == (4, "")
    assert [line.split(" (", 1)[0] for line in err.splitlines()] == [
        "error: evaluate: the run learned from 8 subjects of these data",
        "error: evaluate: the run learned from files of 8 subjects of these data",
    ]
    code, out, _ = evaluate("--exclude-seen", "-q")
    assert (code, out.splitlines()[0].split(", ", 1)[1]) == (0, "unchanged, on its own data.")
    assert "Left out, since the run learned from them: 8 subjects." in out.splitlines()


def test_more_than_the_source_cannot_be_changed(evaluate):
    assert evaluate("seed=1") == (
        3,
        "",
        "error: override 'seed=1': only where the data come from may be changed. "
        "Write source.OPTION=VALUE.\n",
    )


def test_a_source_without_a_table_says_which_options_it_has(evaluate, home):
    code, out, err = evaluate("--data", "b.csv", "source.use=toy")
    assert (code, out) == (3, "")
    assert err.splitlines()[0] == (
        f"error: override 'source.table=\"{home}/b.csv\"': source.table: no such option of toy "
        f"('{home}/b.csv'). Known: blanks."
    )


def test_what_is_no_run_is_one_sentence(evaluate):
    assert evaluate(run="runs/picture/latest") == (
        4,
        "",
        f"error: runs/picture/latest: there is no such run folder. Known: {RUN}.\n",
    )
