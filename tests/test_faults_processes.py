"""Several processes on one store: each artefact is computed once, and whoever waits says so."""

from __future__ import annotations

import json
import os
import re
import signal
from collections import Counter

import pytest
from faults import broken, logged, results

LONG = ("run", "faults.yaml", "stages.fuse.epochs=3000", "stages.fuse.early_stopping=null")


@pytest.mark.slow
@pytest.mark.parametrize("n_processes", [2, 4])
def test_processes_on_one_empty_store_compute_each_artefact_once(nursery, tmp_path, undisturbed, n_processes):
    place = tmp_path / "x"
    children = [nursery.start(place, "run", "faults.yaml", "--json") for _ in range(n_processes)]
    assert [child.wait() for child in children] == [0] * n_processes, [child.err() for child in children]
    begun = Counter(line["address"] for line in logged(place, "stage_started"))
    expected = {line["address"] for line in logged(undisturbed, "stage_started")}
    assert begun == Counter(dict.fromkeys(expected, 1))
    nodes = [json.loads(child.out()) for child in children]
    assert sum(node["computed"] for node in nodes) == len(expected)
    assert all(node["report"] == nodes[0]["report"] for node in nodes)
    for node in nodes:
        for name in ("predictions.csv", "report.json", "model/index.json"):
            assert (place / node["folder"] / name).read_bytes() == results(undisturbed)[name.split("/")[-1]]
    assert broken(place) == []


@pytest.mark.slow
def test_of_four_processes_one_is_killed_and_the_others_finish(nursery, tmp_path, undisturbed):
    place = tmp_path / "x"
    # the first one holds the first lock, and dies at a checkpoint while the others wait for it
    fault = {"at": 1, "event": "os.rename", "under": "checkpoints/", "learning_rate": 0.3}
    doomed = nursery.start(place, fault=fault)
    doomed.wait_for("learn_record: pretrain")
    others = [nursery.start(place) for _ in range(3)]
    assert [child.wait() for child in others] == [0, 0, 0], [child.err() for child in others]
    assert doomed.wait() == -signal.SIGKILL
    finished = Counter(line["address"] for line in logged(place, "stage_finished"))
    assert set(finished.values()) == {1}
    assert set(finished) == {line["address"] for line in logged(undisturbed, "stage_finished")}
    begun = Counter(line["address"] for line in logged(place, "stage_started"))
    assert sum(begun.values()) == len(begun) + 1, "only what died was begun twice"
    assert results(place) == results(undisturbed)
    assert broken(place) == []


def test_whoever_waits_for_a_stopped_process_says_for_what_and_for_whom_within_seconds(nursery, tmp_path):
    place = tmp_path / "x"
    holder = nursery.start(place, *LONG, fault={"eager": False})
    try:
        holder.wait_for("fuse: train head")
        holder.signal("SIGSTOP")
        waiting = nursery.start(place, *LONG, fault={"eager": False})
        waiting.wait_for("waiting", seconds=30)
        line = waiting.err().splitlines()[-1]
        told = re.fullmatch(
            r"waiting for process (\d+) on \S+ \(since [-0-9]+ [:0-9]+; it is stopped: `kill -CONT (\d+)` "
            r"lets it go on\), which computes fuse: train head",
            line,
        )
        assert told, line
        assert {int(number) for number in told.groups()} == {holder.pid}
        assert logged(place, "waiting")[0]["what"] == "fuse: train head"
        waiting.signal("SIGINT")
        assert waiting.wait() == 130, "and can be interrupted"
    finally:
        holder.signal("SIGCONT")
        holder.signal("SIGKILL")
        holder.wait()
    # what the killed one held is free
    assert nursery.run(place, "run", "faults.yaml").poll() == 0


def test_pruning_beside_a_live_run_takes_nothing_that_it_uses(nursery, tmp_path, undisturbed):
    place = tmp_path / "x"
    live = nursery.start(place, fault={"learning_rate": 0.02})
    live.wait_for("tune: train")
    live.signal("SIGSTOP")
    store = place / ".fusionkit" / "store"
    for path in (store / "sources").rglob("*.png"):
        os.utime(path, (0, 0))
    child = nursery.run(place, "store", "prune", "--older-than", "0")
    live.signal("SIGCONT")
    assert live.wait() == 0, live.err()
    first, second = child.out().splitlines()
    assert first == "0 files deleted, 0 B."
    assert re.fullmatch(rf"In use by process {live.pid} on \S+ \(since .*\): what it uses stays\.", second)
    assert results(place) == results(undisturbed)
    assert not nursery.run(place, "store", "prune", "--older-than", "0").out().startswith("0 files")
