"""fusionkit resume: continues what was interrupted, with the options that it had."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from command_line import QUICK, call, command, environment, write_recipe

LONG = [*QUICK, "stages.fuse.epochs=150"]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a run that was killed while it trained, with a store of its own."""
    folder = tmp_path_factory.mktemp("home")
    given = command("run", write_recipe(folder), *LONG, "--store", "mine")
    process = subprocess.Popen(given, cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "fuse: train head" in line:
            process.send_signal(signal.SIGKILL)
            break
    process.communicate(timeout=60)
    return folder


@pytest.fixture
def fusionkit(home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.delenv("FUSIONKIT_STORE", raising=False)
    return lambda *arguments: call(capsys, *arguments)


def test_a_killed_run_says_so_and_is_continued_to_the_same_numbers(home, fusionkit, monkeypatch):
    (folder,) = (home / "runs" / "pictures").iterdir()
    name = f"runs/pictures/{folder.name}"
    assert json.loads((folder / "unfinished.json").read_text())["status"] == "still running, or killed"
    for command_, arguments in (("predict", ["rows.csv"]), ("evaluate", [])):
        assert fusionkit(command_, name, *arguments) == (
            4,
            "",
            f"error: {name}: this run is not finished (killed). Continue it: fusionkit resume {name}\n",
        )
    code, out, err = fusionkit("predict", "runs/pictures/latest", "rows.csv")
    assert (code, out) == (4, "")
    assert err.startswith("error: runs/pictures/latest: no run of this recipe has finished yet. Continue ")

    with monkeypatch.context() as without:
        without.setattr("command_line.TOYS", [])  # it knows which plugins `-p` named
        code, out, err = fusionkit("resume", "--json", "-q")
    assert (code, err) == (0, f"continuing {name}\n")
    continued = json.loads(out)
    whole = json.loads(fusionkit("run", "pictures.yaml", *LONG, "--store", "other", "--json", "-q")[1])
    assert 0 < continued["computed"] < whole["computed"] == 12
    for file in ("predictions.csv", "report.json", "resolved.yaml"):
        texts = [(home / node["folder"] / file).read_bytes() for node in (continued, whole)]
        assert texts[0] == texts[1]

    code, out, err = fusionkit("resume")
    assert (code, out) == (2, "")
    assert err == f"error: resume: nothing to continue, the newest run is finished ({whole['folder']}).\n"


def test_without_any_run_there_is_nothing_to_continue(fusionkit):
    assert fusionkit("resume", "--runs", "none") == (
        2,
        "",
        "error: resume: there is no run in none. Start one: fusionkit run RECIPE\n",
    )


def test_a_run_that_failed_says_why_in_its_folder(fusionkit, home, tmp_path):
    arguments: list[Any] = [*QUICK, "stages.fuse.learning_rate=1e38", "--runs", tmp_path, "-q"]
    code, _, err = fusionkit("run", "pictures.yaml", *arguments)
    assert code == 7
    (folder,) = (tmp_path / "pictures").iterdir()
    marker = json.loads((folder / "unfinished.json").read_text())
    assert [f"error: {problem}" for problem in marker["problems"]] == err.splitlines()
    last = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["problems"]) == ("run_stopped", marker["problems"])
