"""Threads that read: their order, their errors, their end; and one that hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusionkit.data import threads
from fusionkit.data.threads import map_in_threads, prefetch
from fusionkit.errors import DataError

# reading ahead


def n_threads() -> int:
    return len(threading.enumerate())


@given(st.lists(st.integers(), max_size=20), st.integers(1, 4))
def test_prefetch_keeps_the_order(items, depth):
    assert list(prefetch(items, depth)) == items


def test_prefetch_works_ahead_but_no_further_than_its_depth():
    made = []

    def make() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            yield number

    ahead = prefetch(make(), depth=2)
    assert next(ahead) == 0
    time.sleep(0.05)
    assert 2 <= len(made) <= 4
    ahead.close()


def test_prefetch_passes_exceptions_on_after_what_came_before_and_ends_its_thread():
    def fail() -> Iterator[int]:
        yield 1
        raise DataError("row 2: broken (x).")

    before, ahead = n_threads(), prefetch(fail())
    assert next(ahead) == 1
    with pytest.raises(DataError, match="row 2: broken"):
        next(ahead)
    assert n_threads() == before


def test_prefetch_ends_its_thread_when_nobody_wants_more():
    def endless() -> Iterator[int]:
        number = 0
        while True:
            yield (number := number + 1)

    before = n_threads()
    ahead = prefetch(endless())
    assert next(ahead) == 1
    assert n_threads() == before + 1
    ahead.close()
    assert n_threads() == before


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_prefetch_passes_even_interrupts_on(error):
    def fail() -> Iterator[int]:
        raise error
        yield 1

    with pytest.raises(type(error)):
        list(prefetch(fail()))


def test_who_waits_looks_now_and_then_and_what_comes_late_is_not_lost(monkeypatch):
    monkeypatch.setattr(threads, "LOOK_SECONDS", 0.01)
    looks, go_on = [], threading.Event()

    def make() -> Iterator[int]:
        yield 1
        go_on.wait(10)
        yield 2

    def look() -> None:
        looks.append(1)
        if len(looks) == 3:
            go_on.set()

    assert list(prefetch(make(), look=look)) == [1, 2]
    assert len(looks) >= 3


def test_a_thread_that_hangs_is_left_behind_by_who_is_interrupted(monkeypatch):
    monkeypatch.setattr(threads, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(threads, "LEAVE_SECONDS", 0.05)
    release = threading.Event()

    def hang() -> Iterator[int]:
        release.wait(60)
        yield 1

    def interrupt() -> None:
        raise KeyboardInterrupt

    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        next(prefetch(hang(), look=interrupt))
    (left,) = set(threading.enumerate()) - before
    assert left.daemon, "it does not keep the program from ending"
    release.set()
    left.join(10)


# side by side


@given(st.lists(st.integers(), max_size=20), st.integers(0, 4))
def test_side_by_side_keeps_the_order(items, workers):
    before = set(threading.enumerate())
    assert map_in_threads(lambda item: item * 2, items, workers) == [item * 2 for item in items]
    assert set(threading.enumerate()) <= before, "its threads have ended"


def test_side_by_side_is_at_the_same_time():
    both = threading.Barrier(2, timeout=10)
    assert map_in_threads(lambda item: both.wait() >= 0, [1, 2], 2) == [True, True]


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_of_several_errors_the_first_items_comes_through(workers):
    def fail(item: int) -> int:
        if item == 2:
            time.sleep(0.02)  # the later one is there first
        if item > 1:
            raise (SystemExit(item) if item == 2 else DataError(f"{item}"))
        return item

    with pytest.raises(SystemExit) as error:
        map_in_threads(fail, range(9), workers)
    assert error.value.code == 2
