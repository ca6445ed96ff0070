"""Ctrl-C and SIGTERM: what is saved first, what is said, what stops at once."""

from __future__ import annotations

import contextlib
import shlex
import signal
import threading
import time

import pytest
from faults import PLUGINS, Child, broken, logged, results

from fusionkit import interruption

QUIET = {"eager": False}
LONG = ("run", "faults.yaml", "stages.fuse.epochs=25", "stages.fuse.early_stopping=null")
ENDS = "interrupted: saves this epoch (5 seconds at most); Ctrl-C stops at once."


def last_words(*arguments: str) -> list[str]:
    again = shlex.join(["fusionkit", *PLUGINS, *arguments])
    return ["interrupted: what was computed is kept. To go on, give the same command:", f"  {again}"]


def epochs(child: Child) -> list[float]:
    """Returns the epochs of stage fuse that the runs in the child's folder have finished."""
    return [line["epoch"] for line in logged(child.folder, "epoch_finished") if line["where"] == "stage fuse"]


def wait_for_epochs(child: Child, n: int) -> None:
    child.wait_for("fuse: train head")
    while len(epochs(child)) < n:
        assert child.poll() is None, child.err()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(nursery, tmp_path_factory):
    """The folder of a run of LONG that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "x"
    assert nursery.run(folder, *LONG, fault=QUIET).poll() == 0
    return folder


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_once_it_saves_the_epoch_and_the_same_command_goes_on_exactly_there(nursery, tmp_path, whole, name):
    """With the real 5 seconds between checkpoints, so that only the signal makes it save one."""
    child = nursery.start(tmp_path / "x", *LONG, fault={"eager": False, "learning_rate": 0.05})
    wait_for_epochs(child, 3)
    child.signal(name)
    if name == "SIGTERM":  # schedulers say it again and again
        child.signal(name)
    assert (child.wait(), child.out()) == (130, "")
    assert child.err().splitlines()[-3:] == [ENDS, *last_words(*LONG)]
    before = epochs(child)
    assert 3 <= len(before) < 25
    assert not (tmp_path / "x" / "runs" / "faults" / "latest").exists()
    assert nursery.run(tmp_path / "x", *LONG, fault=QUIET).poll() == 0
    after = epochs(child)
    assert after[: len(before) + 1] == [*before, len(before) + 1], "no epoch is lost"
    assert results(tmp_path / "x") == results(whole)


def test_an_epoch_that_takes_too_long_to_end_is_given_up(nursery, tmp_path, whole):
    fault = {"learning_rate": 1.0, "grace": 0.3}
    child = nursery.start(tmp_path / "x", *LONG, fault=fault)
    child.wait_for("learn_record")
    time.sleep(0.2)
    child.signal("SIGINT")
    assert child.wait(seconds=20) == 130
    assert child.err().splitlines()[-2:] == last_words(*LONG)
    assert logged(tmp_path / "x", "epoch_finished") == []
    assert nursery.run(tmp_path / "x", *LONG, fault=QUIET).poll() == 0
    assert results(tmp_path / "x") == results(whole)


def test_twice_it_stops_at_once_and_nothing_is_broken(nursery, tmp_path, whole):
    child = nursery.start(tmp_path / "x", *LONG, fault={"learning_rate": 0.05, "eager": False})
    wait_for_epochs(child, 1)
    child.signal("SIGINT")
    child.wait_for(ENDS.partition("(")[0])
    child.signal("SIGINT")
    assert child.wait(seconds=20) == 130
    assert child.err().splitlines()[-1] == "interrupted: stopped at once; what was computed before is kept."
    assert broken(tmp_path / "x") == []
    assert nursery.run(tmp_path / "x", *LONG, fault=QUIET).poll() == 0
    assert results(tmp_path / "x") == results(whole)


def test_features_that_are_computed_when_it_stops_are_kept(nursery, tmp_path, undisturbed):
    """The real 5 seconds between flushes, so that only the signal makes it write."""
    fault = {"eager": False, "checked": 0.1, "batch": 2}
    child = nursery.start(tmp_path / "x", fault=fault)
    child.wait_for("fuse: fit image.scale")
    time.sleep(0.5)
    child.signal("SIGINT")
    assert child.wait() == 130
    again = nursery.run(tmp_path / "x")
    assert again.poll() == 0
    (line,) = [line for line in again.err().splitlines() if "features of image" in line][:1]
    n_left, n_all = int(line.split()[-1]), 18
    assert 0 < n_left < n_all
    assert results(tmp_path / "x") == results(undisturbed)


# in this process


def test_where_nothing_can_be_saved_it_stops_at_once():
    with pytest.raises(KeyboardInterrupt), interruption.listening():
        signal.raise_signal(signal.SIGTERM)
    assert not interruption.is_asked()


def test_an_interrupt_that_is_swallowed_comes_again(monkeypatch):
    """Python itself swallows what is raised in the callbacks of an import."""
    monkeypatch.setattr(interruption, "AGAIN_SECONDS", 0.05)

    def swallow() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        time.sleep(30)

    with pytest.raises(KeyboardInterrupt), interruption.listening():
        swallow()


def test_what_cleans_up_is_not_interrupted_again(monkeypatch):
    monkeypatch.setattr(interruption, "AGAIN_SECONDS", 0.05)
    cleaned = []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            with contextlib.suppress(ValueError):
                raise ValueError
            time.sleep(0.3)
            cleaned.append(True)

    with pytest.raises(KeyboardInterrupt), interruption.listening():
        work()
    assert cleaned == [True]


def test_an_import_is_not_interrupted_but_what_follows_it_is(monkeypatch, tmp_path):
    """A stop inside torch's import ends in C++ that knows no Python exception: the process crashes."""
    monkeypatch.setattr(interruption, "AGAIN_SECONDS", 0.05)
    (tmp_path / "interrupted_module.py").write_text(
        "import signal, time\nsignal.raise_signal(signal.SIGINT)\ntime.sleep(0.3)\nis_whole = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = []

    def work() -> None:
        import interrupted_module

        found.append(interrupted_module.is_whole)
        time.sleep(30)

    with pytest.raises(KeyboardInterrupt), interruption.listening():
        work()
    assert found == [True]


def test_an_import_that_does_not_end_is_interrupted_after_the_grace(monkeypatch, tmp_path):
    monkeypatch.setattr(interruption, "AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(interruption, "GRACE_SECONDS", 0.2)
    (tmp_path / "endless_module.py").write_text(
        "import signal, time\nsignal.raise_signal(signal.SIGINT)\ntime.sleep(30)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt), interruption.listening():
        import endless_module  # noqa: F401


def test_handlers_are_as_before_afterwards():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with interruption.listening():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_what_the_parent_ignores_stays_ignored():
    """A shell starts what it puts in the background deaf to Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruption.listening():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_thread_hears_no_signals_and_changes_no_handler():
    found = []

    def listen() -> None:
        with interruption.listening(), interruption.postponed():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=listen)
    before = signal.getsignal(signal.SIGINT)
    thread.start()
    thread.join()
    assert found == [before]
