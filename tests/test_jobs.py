from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import toys
from command_line import TOYS, environment

from fusionkit import run as run_module
from fusionkit.prepare import Places
from fusionkit.recipe.load import load_text
from fusionkit.registry import Registry
from fusionkit.run import RunResult, run
from fusionkit.training.jobs import PROGRAM, side_by_side

EXTRA = [argument for argument in TOYS if argument != "-p"]


def run_folds(folder: Path, jobs: int, tell: Any = lambda name, data: None) -> RunResult:
    registry = Registry.discover(EXTRA)
    overrides = [
        "split={scheme: folds, folds: 4}",
        "seeds=2",
        f"training={{threads: 1, jobs: {jobs}}}",
        "evaluation.resamples=100",
    ]
    loaded = load_text(toys.RECIPE, registry, overrides=overrides, data_root=folder / "data")
    return run(loaded, registry, Places(folder / "data", folder / "store", folder / "runs"), tell)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> RunResult:
    return run_folds(tmp_path_factory.mktemp("alone"), 1)


def test_several_jobs_end_at_the_same_bytes_as_one(alone, tmp_path):
    result = run_folds(tmp_path, 3)
    assert result.computed == alone.computed
    for name in ("predictions.csv", "split.csv"):
        assert (result.folder / name).read_bytes() == (alone.folder / name).read_bytes()
    one, other = (json.loads((each.folder / "model" / "index.json").read_text()) for each in (alone, result))
    assert one["sha256"] == other["sha256"]  # of every artefact
    assert one["members"] == other["members"]
    assert result.report["models"] == alone.report["models"]
    assert run_folds(tmp_path, 3).computed == 0


def test_each_stage_is_computed_once_and_the_log_says_by_which_job(tmp_path, monkeypatch):
    begun = threading.Event()
    compute = run_module._compute

    def compute_later(*arguments: Any) -> Any:
        assert begun.wait(120)  # in so small a run, the first job would be done before the second begins
        return compute(*arguments)

    monkeypatch.setattr(run_module, "_compute", compute_later)
    result = run_folds(tmp_path, 2, lambda name, data: begun.set() if data.get("job") == 2 else None)
    log = [json.loads(line) for line in (result.folder / "log.jsonl").read_text().splitlines()]
    finished = [event for event in log if event["event"] == "stage_finished"]
    assert set(Counter(event["address"] for event in finished).values()) == {1}
    assert len(finished) == result.computed
    assert 2 in {event.get("job") for event in finished}


def test_a_job_that_fails_is_said_and_the_run_goes_on(alone, tmp_path, monkeypatch):
    monkeypatch.setattr("fusionkit.training.jobs.PROGRAM", "fusionkit.no_such_job")
    said: list[Any] = []
    result = run_folds(tmp_path, 2, lambda name, data: said.append(data) if name == "job_failed" else None)
    assert result.computed == alone.computed
    assert result.report["models"] == alone.report["models"]
    assert said in ([], [{"problems": ["exit code 1"], "job": 2}])  # it may not even have started to fail


def test_a_job_ends_with_the_process_that_started_it():
    starter = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, subprocess, sys, time\n"
            f"job = subprocess.Popen([sys.executable, '-m', '{PROGRAM}'], stdin=subprocess.PIPE)\n"
            "print(job.pid, flush=True)\n"
            "time.sleep(600)",
        ],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert starter.stdout is not None
    job = int(starter.stdout.readline())
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    starter.stdout.close()
    deadline = time.monotonic() + 60
    while _is_running(job) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _is_running(job)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_jobs_are_ended_with_the_block_and_whatever_it_raises(monkeypatch):
    monkeypatch.setattr("fusionkit.training.jobs.PROGRAM", "http.server")  # something that would go on
    pids = []

    def fail() -> None:
        with side_by_side([{}, {}], lambda name, data: None) as jobs:
            pids.extend(process.pid for process in jobs._processes)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert len(pids) == 2
    assert not any(_is_running(pid) for pid in pids)
