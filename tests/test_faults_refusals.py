"""Full disks and folders that cannot be written: exit 8, one sentence, and nothing that was whole is lost."""

from __future__ import annotations

import os

import pytest
from faults import broken, logged, results

STORE, RUNS = ".fusionkit", "runs"


def sentences(child) -> list[str]:
    return [line for line in child.err().splitlines() if line.startswith("error: ")]


@pytest.mark.slow
def test_a_disk_that_is_full_at_ten_writes_costs_nothing_that_was_whole(nursery, tmp_path, undisturbed):
    refused = set()
    nursery.run(tmp_path / "x", "run", "faults.yaml", "--dry-run")  # draws the pictures
    for n_writes in range(40, 60, 2):
        fault = {"at": n_writes, "refuse": "ENOSPC", "for_good": True}
        child = nursery.run(tmp_path / "x", fault=fault)
        assert (child.poll(), child.out()) == (8, ""), child.err()
        assert "Traceback" not in child.err()
        (sentence,) = sentences(child)
        assert "No space left on device" in sentence
        refused.add(sentence.split(": ")[1])
        assert broken(tmp_path / "x") == [], "the last good state can be loaded"
    assert len(refused) >= 8, refused
    assert nursery.run(tmp_path / "x").poll() == 0
    assert results(tmp_path / "x") == results(undisturbed)
    finished = [line["address"] for line in logged(tmp_path / "x", "stage_finished")]
    assert len(finished) == len(set(finished)), "what was whole is not computed again"


def test_a_disk_that_is_full_while_an_epoch_is_saved_names_the_file_and_keeps_the_epoch_before(
    nursery, tmp_path, undisturbed
):
    fault = {"at": 4, "event": "fsync", "under": "checkpoints/.", "refuse": "ENOSPC", "for_good": True}
    child = nursery.run(tmp_path / "x", fault=fault)
    assert child.poll() == 8
    (sentence,) = sentences(child)
    assert sentence.startswith("error: .fusionkit/store/checkpoints/")
    assert sentence.endswith(
        ".safetensors: cannot be written (No space left on device). Free some space, then give the same "
        "command again: what was computed is kept."
    )
    (kept,) = (tmp_path / "x/.fusionkit/store/checkpoints").iterdir()
    assert kept.suffix == ".safetensors", "and nothing half-written beside it"
    assert broken(tmp_path / "x") == []
    assert nursery.run(tmp_path / "x").poll() == 0
    assert results(tmp_path / "x") == results(undisturbed)


def test_the_kernels_own_limit_on_file_sizes_is_one_sentence(nursery, tmp_path):
    child = nursery.run(tmp_path / "x", fault={"file_size": 2500})
    assert (child.poll(), child.out()) == (8, "")
    (sentence,) = sentences(child)
    assert sentence.endswith("cannot be written (File too large). The limit on file sizes is too low.")
    assert broken(tmp_path / "x") == []


@pytest.mark.parametrize(
    ("folder", "what"), [(STORE, ".fusionkit/store/locks"), (RUNS, "runs/faults/")], ids=["store", "runs"]
)
def test_a_folder_that_cannot_be_written_ends_a_run_at_its_start(nursery, tmp_path, folder, what):
    child = nursery.run(tmp_path / "x", fault={"at": 1, "refuse": "EROFS", "for_good": True, "under": folder})
    assert (child.poll(), child.out()) == (8, "")
    assert logged(tmp_path / "x", "stage_started") == logged(tmp_path / "x", "reading") == []
    (line,) = child.err().splitlines()
    assert line.startswith(f"error: {what}")
    assert line.endswith(
        "cannot be written (Read-only file system). Choose a folder that can be written, with --store or "
        "--runs."
    )


def test_a_disk_that_fills_up_under_the_log_is_one_sentence(nursery, tmp_path):
    child = nursery.run(tmp_path / "x", fault={"full_log": True})
    assert (child.poll(), child.out()) == (8, "")
    (sentence,) = sentences(child)
    assert "log.jsonl: cannot be written (No space left on device)" in sentence
    assert "Traceback" not in child.err()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_report_that_cannot_be_printed_is_one_sentence(nursery, undisturbed):
    child = nursery.run(undisturbed, "list", out="/dev/full")
    assert (child.poll(), len(child.err().splitlines())) == (8, 1)
    assert child.err().startswith("error: ")
    assert "No space left on device" in child.err()
