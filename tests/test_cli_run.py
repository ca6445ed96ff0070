"""fusionkit run: what it prints where, what it leaves, and how it ends."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import toys
from command_line import HOLDOUT, QUICK, TOYS, call, call_process, command, environment, write_recipe


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run in a process of its own, and the folder that it ran in."""
    folder = tmp_path_factory.mktemp("first")
    return folder, call_process(folder, "run", write_recipe(folder), *QUICK, "--json")


def test_json_is_all_of_stdout_and_progress_all_of_stderr(first):
    folder, done = first
    assert done.returncode == 0
    node = json.loads(done.stdout)
    assert set(node) == {"folder", "computed", "report"}
    run = folder / node["folder"]
    assert node["report"] == json.loads((run / "report.json").read_text())
    assert node["computed"] == 12
    lines = done.stderr.splitlines()
    assert lines[0] == "reading toy_pictures"
    assert lines[1] == "audit: 3 warnings about the data; the report names them"
    assert lines[2] == "fold 1 of 2 begins"
    assert lines[3] == "fold 1 of 2: fused learn_record: pretrain record.encoder on 18 rows"
    assert re.fullmatch(
        r"fold 1 of 2: fused learn_record: record\.encoder after 2 epochs: loss [\d.]+ to [\d.]+", lines[4]
    )
    assert "fold 2 of 2 begins" in lines
    assert "\x1b" not in done.stderr
    assert "\r" not in done.stderr


def test_a_second_run_computes_nothing_and_says_so(first, capsys, monkeypatch):
    folder, _ = first
    monkeypatch.chdir(folder)
    code, out, err = call(capsys, "run", "pictures.yaml", *QUICK, "-q")
    assert (code, err) == (0, "")
    latest = (folder / "runs" / "pictures" / "latest").resolve().name
    assert out.splitlines()[0].startswith("SIMULATED")
    assert out.splitlines()[-2:] == [
        "Nothing computed, all from the store.",
        f"Files: runs/pictures/{latest}",
    ]
    assert max(map(len, out.splitlines()[:-1])) <= 80


def plan(capsys: Any, *arguments: Any) -> dict[str, Any]:
    code, out, _ = call(capsys, "run", "pictures.yaml", *QUICK, *arguments, "--dry-run", "--json")
    assert code == 0
    node = json.loads(out)
    assert isinstance(node, dict)
    return node


def test_a_dry_run_says_what_is_stored_before_and_after_and_computes_no_stage(first, capsys, monkeypatch):
    folder, _ = first
    monkeypatch.chdir(folder)
    before = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    after = plan(capsys)
    assert [step["stored"] for step in after["steps"]] == [True] * 12
    assert (after["features"], after["seconds"]) == ({}, 0.0)
    changed = plan(capsys, "stages.raise_record.epochs=3")
    todo = [(step["stage"], step["verb"], step["parts"]) for step in changed["steps"] if not step["stored"]]
    dependents = [
        ("raise_record", "fit", ["record.raiser"]),
        ("fuse", "fit", ["record.scale"]),
        ("fuse", "train", ["head"]),
    ]
    assert todo == 2 * dependents
    empty = plan(capsys, "--store", folder / "empty")
    assert [step["stored"] for step in empty["steps"]] == [False] * 12
    assert [step["address"] for step in empty["steps"]] == [step["address"] for step in after["steps"]]
    assert not (folder / "empty" / "artefacts").exists()
    now = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    assert [path for path in now if folder / "empty" not in path.parents] == before


def test_what_a_mistake_costs_is_a_sentence_and_a_code(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FUSIONKIT_STORE", raising=False)
    recipe = write_recipe(tmp_path)
    under_a_file = recipe / "runs"
    usage = call(capsys, "run")
    assert usage[0] == 2
    assert "Missing argument 'RECIPE'" in usage[2]
    code, out, err = call(capsys, "run", recipe, "seed=-1")
    assert (code, out) == (3, "")
    assert err == "error: override 'seed=-1': seed: must be at least 0 (-1).\n"
    code, out, err = call(capsys, "run", recipe, "--runs", under_a_file)
    assert (code, out) == (8, "")
    assert err.startswith(f"error: {under_a_file}/pictures/")
    assert "cannot be written (Not a directory). Choose a folder that can be written" in err
    assert not (tmp_path / ".fusionkit").exists()
    code, out, err = call(capsys, "run", recipe, "--store", under_a_file, "-q")
    assert (code, out) == (8, "")
    hint = "Choose a folder that can be written, with --store or --runs."
    assert err == f"error: {under_a_file}/locks: cannot be written (Not a directory). {hint}\n"


MISSING_FILE = """\
import toy_images
from fusionkit import SourceSpec, hookimpl


class Source(toy_images.PictureSource):
    def read(self, context):
        folder = context.cache / "half"
        toy_images.make_pictures(folder)
        for name in ("03.png", "20.png"):
            (folder / name).unlink()
        return toy_images.make_manifest(folder)


@hookimpl
def fusionkit_components():
    config = toy_images.PictureSourceConfig
    return [SourceSpec(name="half", summary="Half.", source="ours", config=config, build=Source)]
"""


def test_every_image_that_is_not_there_is_named_before_anything_is_computed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "half.py").write_text(MISSING_FILE)
    recipe = write_recipe(tmp_path)
    code, out, err = call(capsys, "-p", "half.py", "run", recipe, "source={use: half}", "--store", "s", "-q")
    assert (code, out) == (4, "")
    hint = "Check its name and the folder that it is relative to."
    assert err.splitlines() == [
        "error: sample sample03 (subject subject01): picture: there is no such file "
        f"(s/sources/half/03.png). {hint}",
        "error: sample sample20 (subject subject06): picture: there is no such file "
        f"(s/sources/half/20.png). {hint}",
    ]
    assert not (tmp_path / "s" / "artefacts").exists()


def test_a_cell_outside_its_range_is_an_error_of_the_data(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, "run", write_recipe(tmp_path), "split={scheme: column, column: sett}", "-q")
    assert code == 4
    assert err.startswith("error: ")
    assert "sett" in err


def test_a_loss_that_is_not_finite_is_an_error_of_training(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe(tmp_path)
    code, out, err = call(capsys, "run", recipe, *QUICK, "stages.fuse.learning_rate=1e38", "-q")
    assert (code, out) == (7, "")
    assert err.startswith("error: stage fuse: ")
    assert "Traceback" not in err


def test_a_plugin_that_is_broken_is_an_error_only_where_it_was_asked_for(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    code, _, err = call(capsys, "-p", "broken.py", "run", write_recipe(tmp_path))
    assert (code, err) == (5, "error: -p broken.py: ZeroDivisionError: division by zero\n")


LONG = ["stages.fuse.epochs=150", *QUICK]


def test_ctrl_c_ends_with_a_sentence_and_the_same_command_ends_at_the_same_numbers(
    tmp_path, capsys, monkeypatch
):
    recipe = write_recipe(tmp_path)
    process = subprocess.Popen(
        command("run", recipe, *LONG, "--json"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    seen = []
    for line in process.stderr:
        seen.append(line)
        if "fuse: train head" in line:
            time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            break
    out, rest = process.communicate(timeout=60)
    arguments = shlex.join([*TOYS, "run", str(recipe), *LONG, "--json"])
    last = "interrupted: what was computed is kept. To go on, give the same command:\n"
    assert (process.returncode, out) == (130, "")
    assert rest.endswith(f"{last}  fusionkit {arguments}\n")
    assert "Traceback" not in rest
    assert not (tmp_path / "runs" / "pictures" / "latest").exists()
    monkeypatch.chdir(tmp_path)
    arguments = ["run", recipe, *LONG, "--json", "-q"]
    continued = json.loads(call(capsys, *arguments)[1])
    whole = json.loads(call(capsys, *arguments, "--store", "other", "--runs", "others")[1])
    assert 0 < continued["computed"] < whole["computed"] == 12
    for name in ("predictions.csv", "report.json", "split.csv"):
        texts = [(tmp_path / node["folder"] / name).read_bytes() for node in (continued, whole)]
        assert texts[0] == texts[1]


def test_ctrl_c_ends_a_dry_run_with_the_same_sentence(tmp_path, capsys, monkeypatch):
    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fusionkit.dry_run.plan_work", interrupt)
    recipe = write_recipe(tmp_path)
    last = "interrupted: what was computed is kept. To go on, give the same command:\n"
    again = shlex.join(["fusionkit", *TOYS, "run", str(recipe), "--dry-run"])
    assert call(capsys, "run", recipe, "--dry-run") == (130, "", f"{last}  {again}\n")


def test_without_folds_no_line_numbers_them(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(toys.RECIPE)
    code, out, err = call(capsys, "run", "toy.yaml", *QUICK, *HOLDOUT)
    assert code == 0
    assert "\n5 stages computed.\n" in out
    assert [line for line in err.splitlines() if "fold" in line] == []
    assert err.splitlines()[2] == "fused learn_words: pretrain words.encoder on 18 rows"


def test_a_plugin_that_exits_is_no_success(tmp_path, capsys, monkeypatch):
    def leave(*args: Any, **named: Any) -> Any:
        raise SystemExit(0)

    monkeypatch.setattr("fusionkit.run.run", leave)
    code, out, err = call(capsys, "run", write_recipe(tmp_path), *QUICK, "-q", "--runs", tmp_path / "runs")
    assert (code, out) == (5, "")
    assert err == "error: a plugin ended the program (SystemExit 0). Mend it, or leave it out.\n"
