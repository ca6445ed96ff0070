"""Locks between processes: cards, who waits for whom, who uses a folder."""

from __future__ import annotations

import json
import os
import platform
import threading

import pytest

from fusionkit import locks
from fusionkit.locks import Holder, hold, in_use, is_free, users


def silent(name, data) -> None:
    raise AssertionError(f"{name} {data}")


def test_whoever_holds_a_lock_leaves_a_card_until_it_lets_go(tmp_path):
    path = tmp_path / "deep" / "a.lock"
    with hold(path, "toy", silent):
        card = json.loads(path.with_suffix(".json").read_text())
        assert (card["pid"], card["host"]) == (os.getpid(), platform.node())
        assert not is_free(path)
    assert not path.with_suffix(".json").exists()
    assert is_free(path)


def test_an_error_inside_frees_the_lock(tmp_path):
    with pytest.raises(OSError, match="disk"), hold(tmp_path / "a.lock", "toy", silent):
        raise OSError("disk")
    assert is_free(tmp_path / "a.lock")


@pytest.mark.parametrize("card", [None, "{", "[]", '{"pid": "x", "host": 1, "since": 0}'])
def test_one_waits_for_whom_the_card_names_and_says_so_again(tmp_path, monkeypatch, card):
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.01)
    monkeypatch.setattr(locks, "REMIND_SECONDS", 0.01)
    told, path = [], tmp_path / "a.lock"
    enough, got = threading.Event(), threading.Event()

    def tell(name, data) -> None:
        told.append((name, data))
        if len(told) == 3:
            enough.set()

    def wait() -> None:
        with hold(path, "the toy", tell):
            got.set()

    with hold(path, "toy", silent):
        if card is not None:
            path.with_suffix(".json").write_text(card)
        thread = threading.Thread(target=wait)
        thread.start()
        assert enough.wait(20)
        assert not got.is_set()
    thread.join(20)
    assert got.is_set()
    name, data = told[0]
    assert (name, data["what"]) == ("waiting", "the toy")
    named = data["holder"].startswith(f"process {os.getpid()} on {platform.node()} (since 20")
    assert named if card is None else data["holder"] == "another process"


def test_a_holder_is_described_by_number_machine_and_time():
    assert Holder(7, "elsewhere", 0.0).describe().startswith("process 7 on elsewhere (since 19")
    assert "stopped" not in Holder(os.getpid(), platform.node(), 0.0).describe()
    assert "stopped" not in Holder(2**30, platform.node(), 0.0).describe(), "there is no such process"


def test_users_are_those_that_run(tmp_path):
    assert users(tmp_path) == []
    with in_use(tmp_path):
        (user,) = users(tmp_path)
        assert (user.pid, user.host) == (os.getpid(), platform.node())
        (card,) = tmp_path.glob("*.json")
        card.write_text("torn")
        assert [user.since for user in users(tmp_path)] == [0.0], "who began when nobody knows began long ago"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run-1-killed.lock").touch()
    assert users(tmp_path) == []
