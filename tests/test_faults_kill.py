"""Runs that are killed: the same command again ends at the same bytes."""

from __future__ import annotations

import os
import signal

import pytest
from faults import broken, kill_often, logged, results

KILLS = int(os.environ.get("FUSIONKIT_KILLS", "12"))
"""How often runs are killed; `python tests/faults.py --kills 100` does it more often, without pytest."""


@pytest.mark.slow
@pytest.mark.parametrize("at_writes", [False, True], ids=["moments", "writes"])
def test_killed_again_and_again_it_ends_at_the_same_bytes(nursery, tmp_path, at_writes):
    assert kill_often(nursery, tmp_path, KILLS, seed=0, at_writes=at_writes) == []


def test_a_run_that_is_killed_while_it_writes_an_epoch_goes_on_from_the_epoch_before(
    nursery, tmp_path, undisturbed
):
    fault = {"at": 4, "event": "os.rename", "under": "checkpoints/"}
    child = nursery.run(tmp_path / "x", fault=fault)
    assert child.poll() == -signal.SIGKILL
    assert len(list((tmp_path / "x/.fusionkit/store/checkpoints").glob("[!.]*"))) == 1
    last = logged(tmp_path / "x", "epoch_finished")[-1]
    assert (last["where"], last["epoch"]) == ("stage raise_record, record.raiser", 2.0)
    assert nursery.run(tmp_path / "x").poll() == 0
    assert results(tmp_path / "x") == results(undisturbed)
    assert broken(tmp_path / "x") == []
    epochs = len(logged(tmp_path / "x", "epoch_finished"))
    assert epochs == len(logged(undisturbed, "epoch_finished")) + 1, "one epoch is lost"
