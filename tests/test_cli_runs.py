"""fusionkit runs: how each run stands, and that only those go that never finished and have ended."""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import call

from fusionkit.locks import in_use

DAY = 86400.0


def make_run(name: str, days: float, *, finished: bool = False, **marker: Any) -> Path:
    """Makes a run's folder that was last changed so many days ago."""
    folder = Path("runs", "study", name)
    (folder / "model").mkdir(parents=True)
    (folder / "resolved.yaml").write_text("x" * 100)
    if finished:
        (folder / "model" / "index.json").touch()
    if marker:
        (folder / "unfinished.json").write_text(json.dumps(marker))
    then = time.time() - days * DAY
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (then, then))
    return folder


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Runs of every kind; the last one's process is this one, which holds a lock in its store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    names = [f"2026010{number}T000000Z-aaaaaa" for number in range(1, 7)]
    me = {"process": os.getpid(), "machine": platform.node(), "store": str(tmp_path / "store")}
    status = "still running, or killed"
    folders = {
        "finished": make_run(names[0], 90, finished=True),
        "failed": make_run(
            names[1], 90, status="failed after 3 s", problems=["stage fuse: " + "no " * 50], **me
        ),
        "interrupted": make_run(names[2], 10, status="interrupted after 7 s", problems=[]),
        "killed": make_run(names[3], 90, **{**me, "process": 1}, status=status),
        "empty": make_run(names[4], 90),
        "running": make_run(names[5], 90, **me, status=status),
    }
    (folders["empty"] / "resolved.yaml").unlink()
    os.utime(folders["empty"], (0, 0))
    (folders["finished"].parent / "latest").symlink_to(names[0])
    (folders["finished"].parent / "notes").mkdir()
    with in_use(tmp_path / "store" / "locks"):
        yield folders


def left(folders: dict[str, Path]) -> list[str]:
    return [name for name, folder in folders.items() if folder.exists()]


def test_list_says_how_each_run_stands(runs, capsys):
    code, out, err = call(capsys, "runs", "list")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == [str(runs["running"]), *lines[0].split()[1:3], "running"]
    assert lines[1].startswith(f"  process {os.getpid()} on {platform.node()} (since ")
    assert [line.split("B  ")[1] for line in lines[2:5]] == [
        "killed",
        "interrupted after 7 s",
        "failed after 3 s",
    ]
    assert lines[5].startswith("  stage fuse: no no no ")
    assert lines[6:] == [f"{runs['finished']}     100 B  finished", "5 runs in runs, 4 of them not finished."]


def test_list_speaks_json_and_no_run_is_no_mistake(runs, capsys):
    entries = json.loads(call(capsys, "runs", "list", "--json")[1])
    assert entries[-1] == {"run": str(runs["finished"]), "status": "finished", "bytes": 100, "problems": []}
    assert call(capsys, "runs", "list", "--runs", "none") == (0, "0 runs in none.\n", "")
    assert call(capsys, "runs", "prune", "--runs", "none") == (0, "0 unfinished runs deleted.\n", "")


def test_prune_deletes_what_never_finished_and_ended_long_ago(runs, capsys):
    going = [f"  {runs[name]}" for name in ("failed", "killed", "empty")]
    rest = [
        "Not so old: 1 unfinished run; for all of them say --older-than 0.",
        f"Still running: {runs['running']}.",
    ]
    code, out, err = call(capsys, "runs", "prune", "--dry-run")
    assert (code, err) == (0, "")
    assert out.splitlines() == [*going, "3 unfinished runs would be deleted.", *rest]
    assert left(runs) == list(runs)
    assert call(capsys, "runs", "prune")[1].splitlines() == [*going, "3 unfinished runs deleted.", *rest]
    assert left(runs) == ["finished", "interrupted", "running"]


def test_prune_never_deletes_a_finished_or_a_running_run(runs, capsys):
    found = json.loads(call(capsys, "runs", "prune", "--older-than", "0", "--json")[1])
    gone = [str(runs[name]) for name in ("failed", "interrupted", "killed", "empty")]
    assert found == {"gone": gone, "young": [], "live": [str(runs["running"])], "dry_run": False}
    assert left(runs) == ["finished", "running"]
    assert (runs["finished"].parent / "latest").resolve() == runs["finished"].resolve()
    assert (runs["finished"].parent / "notes").is_dir()


def test_a_run_that_begins_just_now_is_left(runs, capsys):
    folder = make_run("20260109T000000Z-aaaaaa", 0)
    call(capsys, "runs", "prune", "--older-than", "0")
    assert folder.exists()


def test_a_running_run_is_waited_for_not_continued(runs, capsys):
    folder = runs["running"]
    code, out, err = call(capsys, "resume", folder)
    assert (code, out) == (2, "")
    assert err.startswith(
        f"error: resume: nothing to continue yet, {folder} is running: process {os.getpid()} on "
    )
    code, out, err = call(capsys, "predict", folder, "rows.csv")
    assert (code, out) == (4, "")
    assert err.startswith(f"error: {folder}: this run is not finished (running: process {os.getpid()} on ")
    assert err.endswith("). Wait for it.\n")


def test_prune_leaves_alone_what_sweeps_and_evaluations_leave(runs, capsys):
    for number, names in enumerate((("sweep.yaml", "table.json"), ("report.json", "environment.json"))):
        folder = Path("runs", "study", f"2025010{number + 1}T000000Z-aaaaaa")
        folder.mkdir()
        for name in names:
            (folder / name).touch()
            os.utime(folder / name, (0, 0))
        os.utime(folder, (0, 0))
    found = json.loads(call(capsys, "runs", "prune", "--older-than", "0", "--json")[1])
    assert not [name for name in found["gone"] if "2025" in name]


def test_a_loop_of_links_is_no_run(runs, capsys):
    os.symlink("b", "runs/study/a")
    os.symlink("a", "runs/study/b")
    code, _, err = call(capsys, "predict", "runs/study/a", "rows.csv")
    assert (code, err.count("error: ")) == (4, 1)
