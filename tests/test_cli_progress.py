"""What a run shows while it works: lines where nobody watches, a bar on a terminal, nothing with -q."""

from __future__ import annotations

import io
import os
import re
import select
import subprocess

import pytest
from command_line import QUICK, command, environment, write_recipe
from rich.console import Console
from rich.progress import Progress

from fusionkit.cli import progress, sweep_progress

pty = pytest.importorskip("pty", reason="a terminal needs a Unix system")

STAGE = {"stage": "fuse", "verb": "train", "parts": ["head"], "address": "a", "rows": 18}
EPOCH = {"where": "stage fuse", "epoch": 3.0, "epochs": 9, "loss": 0.25}
ENDS = {"first": {"epoch": 1.0, "loss": 12.5}, "last": {"epoch": 9.0, "loss": 0.25}}
LOSSES = "fuse: head after 9 epochs: loss 12.5 to 0.250"


@pytest.fixture
def now(monkeypatch):
    """A clock that tests move."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    return clock


def test_quiet_says_nothing(capsys):
    with progress.show_progress(quiet=True) as tell:
        tell("stage_started", STAGE)
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_each_stage_is_a_line_and_long_ones_speak_every_few_seconds(capsys, now):
    with progress.show_progress(quiet=False) as tell:
        tell("reading", {"source": "toy"})
        tell("fold_started", {"fold": 1, "folds": 1, "jobs": 1})
        tell("stage_started", STAGE)
        tell("epoch_finished", EPOCH)
        now[0] += progress.LINE_SECONDS + 1
        tell("epoch_finished", {"model": "fused", **EPOCH})
        tell("epoch_finished", EPOCH)
        tell("features", {"modality": "image", "done": 5, "total": 9})
        tell("features", {"modality": "image", "done": 9, "total": 9})
        tell("batch_finished", {"where": "x", "epoch": 1, "epochs": 2, "batch": 1, "batches": 3})
        tell("stage_finished", STAGE)
    assert capsys.readouterr() == (
        "",
        "reading toy\n"
        "fuse: train head on 18 rows\n"
        "fused fuse: epoch 3 of 9, loss 0.250\n"
        "features of image: 9 of 9\n",
    )


def test_a_stage_that_goes_on_says_how_much_of_it_was_kept_in_every_fold(capsys, now):
    kept = {"model": "fused", "where": "stage fuse", "epoch": 6, "epochs": 8}
    with progress.show_progress(quiet=False) as tell:
        tell("fold_started", {"fold": 2, "folds": 5, "jobs": 1})
        tell("stage_continued", kept)
    line = "fused fuse: 6 of 8 epochs were kept\n"
    assert capsys.readouterr().err == f"fold 2 of 5 begins\nfold 2 of 5: {line}"
    bar, live = make_live()
    live.tell("stage_continued", kept)
    assert bar.console.file.getvalue() == line


def test_files_that_a_source_makes_are_counted_from_the_start(capsys, now):
    def make(tell):
        for done in range(8):
            tell("making_files", {"source": "toy", "done": done, "total": 7})
            now[0] += 0.4 * progress.LINE_SECONDS

    lines = [f"toy: {done} of 7 files made\n" for done in (0, 3, 6, 7)]
    with progress.show_progress(quiet=False) as tell:
        make(tell)
    assert capsys.readouterr().err == "".join(lines)
    with sweep_progress.show_sweep(["one"], quiet=False) as tell:
        make(tell)
    assert capsys.readouterr().err == "".join(lines)
    bar, live = make_live()
    live.tell("making_files", {"source": "toy", "done": 3, "total": 7})
    assert shown(bar) == [("making files of toy", 3, 7)]


def test_an_audit_counts_files_and_says_in_a_line_that_it_warns(capsys, now):
    with progress.show_progress(quiet=False) as tell:
        tell("audited", {"errors": [], "warnings": []})
        tell("auditing", {"done": 3, "total": 9})
        now[0] += progress.LINE_SECONDS + 1
        tell("auditing", {"done": 7, "total": 9})
        tell("auditing", {"done": 8, "total": 9})
        tell("audited", {"errors": [], "warnings": ["one"]})
        tell("audited", {"errors": [], "warnings": ["one", "another"]})
    assert capsys.readouterr().err == (
        "auditing files: 7 of 9\n"
        "audit: 1 warning about the data; the report names it\n"
        "audit: 2 warnings about the data; the report names them\n"
    )
    bar, live = make_live()
    live.tell("auditing", {"done": 3, "total": 9})
    live.tell("audited", {"errors": [], "warnings": ["one"]})
    assert shown(bar) == [("auditing files", 3, 9)]
    assert bar.console.file.getvalue() == "audit: 1 warning about the data; the report names it\n"


def test_of_many_folds_each_says_that_it_begins_and_the_first_speaks_at_length(capsys, now):
    with progress.show_progress(quiet=False) as tell:
        for fold in (1, 2, 10):
            tell("fold_started", {"fold": fold, "folds": 10, "jobs": 1})
            tell("stage_started", STAGE)
            now[0] += 6
            tell("stage_finished", {**STAGE, **ENDS})
            now[0] += 6
        tell("stage_started", STAGE)
    assert capsys.readouterr().err == (
        "fold 1 of 10 begins\n"
        "fold 1 of 10: fuse: train head on 18 rows\n"
        f"fold 1 of 10: {LOSSES}\n"
        "fold 2 of 10 begins\n"
        "fold 10 of 10 begins\n"
        "fold 10 of 10: fuse: train head on 18 rows\n"
    )


def test_a_stage_that_learned_by_gradient_says_where_its_losses_began_and_ended(capsys):
    validated = {
        "first": {**ENDS["first"], "validation_loss": 1234.5},
        "last": {**ENDS["last"], "validation_loss": 0.00056789},
    }
    once = {"first": ENDS["first"], "last": ENDS["first"]}
    with progress.show_progress(quiet=False) as tell:
        for ends in (ENDS, validated, once, {}):
            tell("stage_finished", {"model": "fused", **STAGE, **ends})
    assert capsys.readouterr().err == (
        f"fused {LOSSES}\n"
        f"fused {LOSSES}, validation loss 1.23e+03 to 0.000568\n"
        "fused fuse: head after 1 epoch: loss 12.5\n"
    )


def test_on_a_terminal_the_first_folds_losses_are_lines_that_stay():
    bar, live = make_live()
    for fold in (1, 2):
        live.tell("stage_finished", {"fold": fold, **STAGE, **ENDS})
    live.tell("stage_finished", STAGE)
    assert bar.console.file.getvalue() == f"{LOSSES}\n"


WAITING = {"what": "fuse: train head", "holder": "process 7 on vm (since 2026-11-25 11:40:50)"}
WAITS = "waiting for process 7 on vm (since 2026-11-25 11:40:50), which computes fuse: train head"


def test_whoever_waits_says_so_in_every_fold(capsys, now):
    with progress.show_progress(quiet=False) as tell:
        tell("fold_started", {"fold": 2, "folds": 10})
        tell("stage_started", STAGE)
        tell("waiting", WAITING)
    assert capsys.readouterr().err == f"fold 2 of 10 begins\nfold 2 of 10: {WAITS}\n"


def test_on_a_terminal_whoever_waits_says_so_above_the_bar():
    bar, live = make_live()
    live.tell("stage_started", STAGE)
    live.tell("waiting", WAITING)
    assert " ".join(bar.console.file.getvalue().split()) == WAITS
    assert shown(bar) == [("fuse: head", 0, None)]


TROUBLE = [
    ("memory_full", {"where": "stage fuse", "rows": 8, "parts": 2, "why": "x"}),
    (
        "still_reading",
        {"modality": "image", "where": "sample s1 (subject p1)", "cells": "a.png", "seconds": 60},
    ),
]
TROUBLE_LINES = [
    "stage fuse: memory is full, batches are computed in 2 parts",
    "image: still reading sample s1 (subject p1): a.png, for 60 s; Ctrl-C ends the run",
]


def test_what_a_user_must_know_is_told_in_every_fold(capsys, now):
    with progress.show_progress(quiet=False) as tell:
        tell("fold_started", {"fold": 2, "folds": 10})
        for event in TROUBLE:
            tell(*event)
    said = [f"fold 2 of 10: {line}" for line in TROUBLE_LINES]
    assert capsys.readouterr().err.splitlines() == ["fold 2 of 10 begins", *said]


def test_on_a_terminal_what_a_user_must_know_is_a_line_that_stays():
    bar = Progress(console=Console(file=io.StringIO(), width=100))
    for event in TROUBLE:
        progress._Live(bar).tell(*event)
    assert bar.console.file.getvalue().splitlines() == TROUBLE_LINES


def make_live():
    bar = Progress(console=Console(file=io.StringIO(), width=80))
    return bar, progress._Live(bar)


def shown(bar):
    return [(task.description, task.completed, task.total) for task in bar.tasks]


def test_on_a_terminal_a_bar_counts_folds_and_another_the_steps_batches():
    bar, live = make_live()
    live.tell("reading", {"source": "toy"})
    assert shown(bar) == [("reading toy", 0, None)]
    live.tell("fold_started", {"fold": 3, "folds": 5, "jobs": 1})
    live.tell("stage_started", STAGE)
    live.tell("batch_finished", {"where": "x", "epoch": 2, "epochs": 4, "batch": 1, "batches": 3})
    assert sorted(shown(bar)) == [("folds", 2, 5), ("fuse: head", 4, 12)]


def batch(done, total=12):
    return {"where": "x", "epoch": 1, "epochs": 1, "batch": done, "batches": total}


def test_the_time_left_is_that_of_the_mean_speed_and_begins_anew_with_what_begins_anew(now):
    bar, live = make_live()

    def left() -> float | None:
        ends = bar.tasks[-1].fields["ends"]
        return None if ends is None else ends - now[0]

    live.tell("stage_started", STAGE)
    assert left() is None
    live.tell("batch_finished", batch(6))  # six are an earlier run's
    assert left() is None
    for seconds, done, due in ((10, 7, 50), (2, 8, 24), (0, 9, 12)):
        now[0] += seconds
        live.tell("batch_finished", batch(done))
        assert left() == due
    live.tell("batch_finished", batch(1))  # the next initialisation, under the same name
    assert left() is None
    now[0] += 3
    live.tell("batch_finished", batch(2))
    assert left() == 30


def test_a_time_left_is_written_as_a_clock():
    assert [progress.clock(seconds) for seconds in (-5, 9.4, 754, 3723)] == [
        "0:00",
        "0:09",
        "12:34",
        "1:02:03",
    ]


def test_where_nobody_knows_how_much_there_is_to_do_no_count_is_shown():
    bar, live = make_live()
    live.tell("reading", {"source": "toy"})
    assert bar.tasks[0].fields["count"] == ""
    live.tell("auditing", {"done": 3, "total": 9})
    assert bar.tasks[0].fields["count"] == "3/9"


def test_a_stage_has_its_name_again_after_its_features():
    bar, live = make_live()
    live.tell("stage_started", STAGE)
    live.tell("features", {"modality": "image", "done": 9, "total": 9})
    assert shown(bar) == [("features of image", 9, 9)]
    live.tell("batch_finished", {"where": "x", "epoch": 1, "epochs": 4, "batch": 1, "batches": 3})
    assert shown(bar) == [("fuse: head", 1, 12)]


def run_on_a_terminal(folder, *arguments):
    """Runs the toy with stderr on a terminal of 80 columns; returns exit code, stdout and what was drawn."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        command("run", write_recipe(folder), *QUICK, *arguments),
        cwd=folder,
        env=environment(TERM="xterm"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=follower,
    )
    os.close(follower)
    drawn = b""
    while process.poll() is None or select.select([leader], [], [], 0)[0]:
        if select.select([leader], [], [], 0.1)[0]:
            try:
                drawn += os.read(leader, 65536)
            except OSError:  # the other end is closed
                break
    os.close(leader)
    out = process.stdout.read()
    process.stdout.close()
    return process.wait(), out.decode(), drawn.decode()


def test_a_bar_is_drawn_on_a_terminal_and_leaves_nothing_behind(tmp_path):
    code, out, drawn = run_on_a_terminal(tmp_path, "stages.fuse.epochs=60")
    assert code == 0
    assert "\x1b" not in out
    assert "folds" in drawn
    assert "fuse: head" in drawn
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn)
    assert max(len(line) for line in re.split(r"[\r\n]+", plain)) <= 80
    # cursor shown again, last line erased
    assert drawn.rstrip().endswith("\x1b[2K")
    assert "\x1b[?25h" in drawn


def test_quiet_draws_nothing_on_a_terminal_either(tmp_path):
    code, out, drawn = run_on_a_terminal(tmp_path, "-q")
    assert (code, drawn) == (0, "")
    assert out.startswith("SIMULATED DATA")
