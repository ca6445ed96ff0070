from __future__ import annotations

import itertools
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
from fusionkit.training import jobs
from fusionkit.training.jobs import side_by_side

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
    compute = run_module.compute_models

    def compute_later(*arguments: Any) -> Any:
        assert begun.wait(120)  # in so small a run, the first job would be done before the second begins
        return compute(*arguments)

    monkeypatch.setattr(run_module, "compute_models", compute_later)
    result = run_folds(tmp_path, 2, lambda name, data: begun.set() if data.get("job") == 2 else None)
    log = [json.loads(line) for line in (result.folder / "log.jsonl").read_text().splitlines()]
    finished = [event for event in log if event["event"] == "stage_finished"]
    assert set(Counter(event["address"] for event in finished).values()) == {1}
    assert len(finished) == result.computed
    assert 2 in {event.get("job") for event in finished}
    places = {(event["fold"], event["member"]) for event in finished}
    assert places == set(itertools.product((1, 2, 3, 4), (1, 2)))


ODD = """\
import os
import time


def main(assignment, lifeline, channel):
    print("no event", flush=True)
    assert input_is_empty()
    HOW


def input_is_empty():
    return os.read(0, 1) == b""
"""


def run_odd_job(folder: Path, monkeypatch: Any, how: str) -> list[Any]:
    """Runs with a second job that does something else; returns what is said of it."""
    (folder / "odd_job.py").write_text(ODD.replace("HOW", how))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(jobs, "PROGRAM", "odd_job")
    said: list[Any] = []
    failed = threading.Event()

    def tell(name: str, data: Any) -> None:
        if name == "job_failed":
            said.append(data)
            failed.set()

    compute = run_module.compute_models

    def compute_later(*arguments: Any) -> Any:
        failed.wait(60)  # in so small a run, all would be over before the job has failed
        return compute(*arguments)

    if "sleep" not in how:
        monkeypatch.setattr(run_module, "compute_models", compute_later)
    run_folds(folder, 2, tell)
    return said


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("os._exit(0)", [{"problems": ["exit code 0"], "job": 2}]),
        ("os._exit(3)", [{"problems": ["exit code 3"], "job": 2}]),
        ("os.kill(os.getpid(), 9)", [{"problems": ["exit code -9"], "job": 2}]),
        # the child holds the pipe, so that nobody hears of the end before the run itself ends it
        ("time.sleep(600) if os.fork() else time.sleep(600)", []),
        ("time.sleep(600)", []),
    ],
    ids=["silent", "exit", "killed", "forks", "hangs"],
)
def test_a_job_that_fails_or_hangs_is_said_and_the_run_goes_on(alone, tmp_path, monkeypatch, how, said):
    assert run_odd_job(tmp_path, monkeypatch, how) == said
    (folder,) = [path for path in (tmp_path / "runs" / "toy").iterdir() if not path.is_symlink()]
    assert (folder / "predictions.csv").read_bytes() == (alone.folder / "predictions.csv").read_bytes()


def test_a_job_imports_the_same_code_wherever_one_stands(alone, tmp_path, monkeypatch):
    (tmp_path / "fusionkit").mkdir()
    (tmp_path / "fusionkit" / "__init__.py").write_text("raise RuntimeError('another checkout')")
    (tmp_path / "token.py").write_text("print('mine'); raise RuntimeError('mine')")
    monkeypatch.chdir(tmp_path)
    failed: list[Any] = []
    result = run_folds(tmp_path, 2, lambda name, data: failed.append(data) if name == "job_failed" else None)
    assert failed == []
    assert (result.folder / "predictions.csv").read_bytes() == (alone.folder / "predictions.csv").read_bytes()


def test_a_job_ends_with_the_process_that_started_it(tmp_path):
    (tmp_path / "sleeping.py").write_text(
        "import os\nimport time\nfrom fusionkit.job import _end_with\nimport threading\n"
        "def main(assignment, lifeline, channel):\n"
        "    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()\n"
        "    print(os.getpid(), file=channel, flush=True)\n    time.sleep(600)\n"
    )
    starter = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import json, subprocess, sys\nfrom fusionkit.training import jobs\n"
            f"jobs.PROGRAM = 'sleeping'\nsys.path.insert(0, {str(tmp_path)!r})\n"
            "jobs.json.loads = lambda line: print(line, flush=True)\n"
            "with jobs.side_by_side([{}], print):\n    sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(),
    )
    assert starter.stdout is not None
    assert starter.stdin is not None
    job = int(starter.stdout.readline())
    assert _is_running(job)
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    starter.stdout.close()
    starter.stdin.close()
    deadline = time.monotonic() + 60
    while _is_running(job) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _is_running(job)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_jobs_are_ended_with_the_block_and_whatever_it_raises(tmp_path, monkeypatch):
    (tmp_path / "odd_job.py").write_text(ODD.replace("HOW", "os.fork(); time.sleep(600)"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(jobs, "PROGRAM", "odd_job")
    pids = []

    def fail() -> None:
        with side_by_side([{}, {}], lambda name, data: None) as further:
            pids.extend(process.pid for process in further._processes)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert len(pids) == 2
    assert not any(_is_running(pid) for pid in pids)


def test_what_telling_of_a_job_raises_is_raised_at_the_end(tmp_path, monkeypatch):
    (tmp_path / "odd_job.py").write_text(ODD.replace("HOW", "pass"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(jobs, "PROGRAM", "odd_job")
    told = threading.Event()

    def tell(name: str, data: Any) -> None:
        told.set()
        raise OSError("the log is full")

    def run_and_wait() -> None:
        with side_by_side([{}], tell):
            assert told.wait(60)

    with pytest.raises(OSError, match="the log is full"):
        run_and_wait()
