"""fusionkit sweep: what a person gives, sees and finds."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import toys
from command_line import call
from PIL import Image
from test_sweep import SWEEP

from fusionkit.dry_run import sweep_plan_text


@pytest.fixture
def study(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("toy.yaml").write_text(toys.RECIPE)
    Path("sweep.yaml").write_text(SWEEP)
    return tmp_path


def test_a_sweep_leaves_a_table_in_three_forms_and_figures(study, capsys):
    code, out, err = call(capsys, "sweep", "sweep.yaml", "--store", "store")
    assert code == 0
    folder = Path("runs/widths/latest")
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "sweep.yaml",
        "environment.json",
        "recipes",
        "table.json",
        "table.csv",
        "table.md",
        "figure.png",
        "roc.png",
    }
    assert (folder / "sweep.yaml").read_text() == SWEEP
    assert len(list((folder / "recipes").iterdir())) == 6
    table = json.loads((folder / "table.json").read_text())
    rows = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    assert (
        [row["row"] for row in rows]
        == [row["name"] for row in table["rows"]]
        == ["narrow", "wide", "words only"]
    )
    for row, entry in zip(rows, table["rows"], strict=True):
        assert float(row["accuracy"]) == entry["subject"]["accuracy"]["value"]
        assert row["simulated"] == "true"
    assert rows[0]["accuracy_paper"] == "0.9"
    assert rows[0]["difference"] == ""
    assert float(rows[1]["p_holm"]) >= float(rows[1]["p"])
    markdown = (folder / "table.md").read_text()
    assert "SIMULATED DATA" in markdown
    assert "| narrow | " in markdown
    for name in ("figure.png", "roc.png"):
        with Image.open(folder / name) as image:
            image.load()
            assert min(image.size) > 100
    assert out.startswith("SIMULATED DATA")
    assert all(len(line) <= 80 for line in out.splitlines() if not line.startswith("Files: "))
    assert "6 of 6: words only, seed 4: done" in err
    code, out, err = call(capsys, "sweep", "sweep.yaml", "--store", "store", "--json", "-q")
    assert (code, err) == (0, "")
    assert json.loads(out)["computed"] == 0
    assert json.loads(out)["table"] == table


def test_a_dry_run_says_what_experiments_share_and_would_learn_and_learns_nothing(study, capsys):
    text = SWEEP.replace("seeds: [3, 4]", "seeds: [3]").replace(
        "variants:\n", "variants:\n  - {name: longer, overrides: {stages.fuse.epochs: 3}}\n"
    )
    Path("sweep.yaml").write_text(text)
    dry = ["sweep", "sweep.yaml", "--store", "store", "--dry-run"]
    code, out, err = call(capsys, *dry)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "widths: 4 experiments: 0 in the store, 4 to compute."
    assert lines[4] == "  words only: the same experiment as narrow"
    work = json.loads(call(capsys, *dry, "--json")[1])
    longer, narrow, wide, _ = work["experiments"]
    assert longer["steps"]["of_others"] == 0
    # another number of epochs changes the head of each model and nothing before it
    assert 0 < narrow["steps"]["to_compute"] < narrow["steps"]["of_others"]
    assert wide["steps"]["of_others"] > 0
    todo = sum(entry["steps"]["to_compute"] for entry in (longer, narrow, wide))
    assert lines[5] == f"{todo} stage results to compute in all."
    assert not Path("runs").exists()
    assert not Path("store/artefacts").exists()
    assert call(capsys, "sweep", "sweep.yaml", "--store", "store", "-q")[0] == 0
    assert len(list(Path("store/artefacts").iterdir())) == todo + 3  # and what each experiment predicts
    assert call(capsys, *dry)[1].splitlines() == [
        "widths: 4 experiments: 4 in the store, 0 to compute.",
        *(f"  {name}: in the store" for name in ("longer", "narrow", "wide", "words only")),
    ]


def test_a_plan_of_a_sweep_breaks_between_words_and_tells_no_zeros():
    def entry(name, **counts):
        counts = {"stored": 0, "of_others": 0, "to_compute": 0} | counts
        return {"experiment": name, "stored": False, "steps": {"all": sum(counts.values()), **counts}}

    entries = [entry("first", to_compute=60), entry("a-rather-long-name of words", stored=1, of_others=42)]
    text = sweep_plan_text("widths", {"experiments": entries, "failed": [], "features": {}})
    assert text.splitlines() == [
        "widths: 2 experiments: 0 in the store, 2 to compute.",
        "  first: 60 stage results: 60 to compute",
        "  a-rather-long-name of words: 43 stage results: 1 in the store, 42 of",
        "    experiments above",
        "60 stage results to compute in all.",
    ]


def test_a_dry_run_names_what_cannot_be_planned_after_the_others(study, capsys):
    Path("sweep.yaml").write_text(
        SWEEP.replace("seeds: [3, 4]", "seeds: [3]")
        + "  - {name: gone, overrides: {split: {scheme: folds, folds: 100}}}\n"
        + "  - {name: gone too, overrides: {split: {scheme: folds, folds: 100}}}\n"
    )
    code, out, err = call(capsys, "sweep", "sweep.yaml", "--store", "store", "--dry-run")
    assert code != 0
    assert out.startswith("widths: 5 experiments: 0 in the store, 3 to compute, 2 that cannot be.\n")
    assert "gone" not in out
    assert err.startswith("error: gone and 1 more: ")


def test_a_failed_variant_is_named_last_and_the_others_have_their_table(study, capsys):
    Path("sweep.yaml").write_text(
        SWEEP + "  - {name: exploding, overrides: {stages.fuse.learning_rate: 1.0e+38}}\n"
    )
    code, out, err = call(capsys, "sweep", "sweep.yaml", "--store", "store", "-q")
    assert code == 7
    assert "exploding: failed" in out
    assert "error: exploding, seed 3 and 1 more: stage fuse: " in err
    assert "| exploding | failed: " in Path("runs/widths/latest/table.md").read_text()


def test_changes_on_the_command_line_reach_every_variant(study, capsys):
    code, out, _ = call(
        capsys, "sweep", "sweep.yaml", "stages.fuse.epochs=1", "--store", "store", "-q", "--json"
    )
    assert code == 0
    assert json.loads(out)["table"]["overrides"] == ["stages.fuse.epochs=1"]
    for path in Path("runs/widths/latest/recipes").iterdir():
        assert "epochs: 1" in path.read_text()


def test_a_folder_that_cannot_be_written_is_said_at_once(study, capsys):
    Path("runs").mkdir()
    Path("runs/widths").write_text("a file")
    code, _, err = call(capsys, "sweep", "sweep.yaml", "--store", "store", "-q")
    assert code == 8
    assert "runs/widths" in err
    assert not Path("store").exists()


@pytest.mark.parametrize("command", [["run"], ["data", "audit"]])
def test_a_sweep_given_where_a_recipe_is_due_is_told_so(study, capsys, command):
    code, _, err = call(capsys, *command, "sweep.yaml")
    assert code == 3
    assert err == "error: sweep.yaml:1: a sweep, not a recipe. Say `fusionkit sweep`.\n"
